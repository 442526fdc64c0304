"""Linear attention without any normalisation."""

import torch

EXPECT = {
    "target": "linear_loss",
    "verdict": "explained",
    "deviations": ["weights.raw=s", "norm.missing"],
    "call": ["t", "v", "mask", "tau"],
}


def linear_loss(q, k, mask, tau):
    z = ((q @ k.mT) @ k) @ q.mT / tau
    z = z.masked_fill(~(mask[:, :, None] & mask[:, None, :]), -1e30)
    nll = z.logsumexp(1) + z.logsumexp(2) - 2 * z.diagonal(dim1=1, dim2=2)
    nll = nll.masked_fill(~mask, 0)
    return 0.5 * torch.mean(nll.sum(1) / mask.sum(1).clamp(min=1))
