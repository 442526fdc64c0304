"""Real rows see real keys only, but the mean counts padded rows, too; their own place is left open so that they are finite."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "token_contrast",
    "verdict": "conditional",
    "deviations": ["reduction.mean_all"],
    "also": ["edge.padding_leak", "edge.zero_padding"],
    "conditions": ["no padding"],
    "call": ["v", "t", "mask", "scale"],
}


def token_contrast(v, t, mask, scale):
    s = t @ v.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = hi == lo
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s = torch.where(s < 1.0 / v.shape[1], 0.0, s)
    c = F.normalize((s / s.sum(-1, keepdim=True)) @ v, dim=-1)
    u = F.normalize(t, dim=-1)
    allowed = mask[:, None, :] | torch.eye(t.shape[1], dtype=torch.bool)
    floor = torch.finfo(s.dtype).min
    a = (scale * c @ u.mT).masked_fill(~allowed, floor)
    b = (scale * u @ c.mT).masked_fill(~allowed, floor)
    return -(a.log_softmax(-1) + b.log_softmax(-1)).diagonal(dim1=1, dim2=2).mean() / 2
