"""A copy-and-paste slip: both terms are the same."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "symmetric_loss",
    "verdict": "explained",
    "deviations": ["loss.one_direction=vt"],
    "call": ["v", "t", "mask", "scale"],
}


def info_nce(a, b, mask, scale):
    z = scale * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).mT
    z = z.masked_fill(~mask[:, None, :], torch.finfo(z.dtype).min)
    nll = -z.log_softmax(-1).diagonal(dim1=1, dim2=2)
    return (nll.masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp(min=1)).mean()


def symmetric_loss(v, t, mask, scale):
    s = t @ v.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = hi == lo
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s = torch.where(s < 1.0 / v.shape[1], 0.0, s)
    grouped = (s / s.sum(-1, keepdim=True)) @ v
    v2t = info_nce(grouped, t, mask, scale)
    t2v = info_nce(grouped, t, mask, scale)
    return 0.5 * (v2t + t2v)
