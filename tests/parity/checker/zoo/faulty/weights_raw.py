"""The similarity itself is the weight: signed, dense."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "bilinear_pool_loss",
    "verdict": "explained",
    "deviations": ["weights.raw=s"],
    "call": ["v", "t", "lengths", "scale"],
}


def bilinear_pool_loss(regions, words, lengths, scale):
    valid = torch.arange(words.shape[1])[None] < lengths[:, None]
    pooled = words @ (regions.mT @ regions)
    pooled, words = F.normalize(pooled, dim=-1), F.normalize(words, dim=-1)
    z = scale * pooled @ words.mT
    floor = torch.finfo(z.dtype).min
    lse = z.masked_fill(~valid[:, None, :], floor).logsumexp(2) + z.masked_fill(~valid[:, :, None], floor).logsumexp(1)
    nll = lse / 2 - z.diagonal(dim1=1, dim2=2)
    return (nll.masked_fill(~valid, 0).sum(1) / lengths.clamp(min=1)).mean()
