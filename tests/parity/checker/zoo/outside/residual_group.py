"""The token is added to its group, as in a Transformer block."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "residual_loss",
    "verdict": "unexplained",
    "stage": "grouping",
    "call": ["v", "t", "mask", "scale"],
}


def residual_loss(v, t, mask, scale):
    s = t @ v.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = lo == hi
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s = torch.where(s < 1 / v.shape[1], 0.0, s)
    a = s / s.sum(-1, keepdim=True)
    c = a @ v
    c = t + c
    c, u = F.normalize(c, dim=-1), F.normalize(t, dim=-1)
    z = scale * c @ u.mT
    floor = torch.finfo(z.dtype).min
    one = z.masked_fill(~mask[:, None, :], floor).log_softmax(2)
    two = z.masked_fill(~mask[:, :, None], floor).log_softmax(1)
    ce = -(one + two).diagonal(dim1=1, dim2=2).masked_fill(~mask, 0.0) / 2
    return (ce.sum(1) / mask.sum(1).clamp(min=1)).mean()
