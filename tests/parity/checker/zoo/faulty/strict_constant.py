"""A strict threshold of zero: only the least similar patch goes, and it has no weight anyway."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "relu_like",
    "verdict": "explained",
    "deviations": ["threshold.absent"],
    "also": ["threshold.strict", "threshold.constant=0"],
    "call": ["v", "t", "mask", "scale"],
}


def relu_like(v, t, mask, scale, sigma=0.0):
    s = t @ v.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = hi == lo
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s = torch.where(s > sigma, s, 0.0)
    c = F.normalize((s / s.sum(-1, keepdim=True)) @ v, dim=-1)
    z = scale * c @ F.normalize(t, dim=-1).mT
    z = z.masked_fill(~(mask[:, None, :] & mask[:, :, None]), torch.finfo(z.dtype).min)
    ce = -(z.log_softmax(1) + z.log_softmax(2)).diagonal(dim1=1, dim2=2) / 2
    return (ce.masked_fill(~mask, 0.0).sum(1) / mask.sum(1).clamp(min=1)).mean()
