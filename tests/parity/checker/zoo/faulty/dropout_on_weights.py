"""Dropout that stays on."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "regularised_loss",
    "verdict": "unexplained",
    "stage": "weights",
    "behaviour": ["edge.not_deterministic"],
    "call": ["v", "t", "mask", "scale"],
}


def regularised_loss(v, t, mask, scale):
    s = t @ v.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = hi == lo
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s = torch.where(s < 1.0 / v.shape[1], 0.0, s)
    a = F.dropout(s / s.sum(-1, keepdim=True), p=0.1, training=True)
    c = F.normalize(a @ v, dim=-1)
    z = scale * c @ F.normalize(t, dim=-1).mT
    z = z.masked_fill(~(mask[:, None, :] & mask[:, :, None]), torch.finfo(z.dtype).min)
    ce = -(z.log_softmax(1) + z.log_softmax(2)).diagonal(dim1=1, dim2=2) / 2
    return (ce.masked_fill(~mask, 0.0).sum(1) / mask.sum(1).clamp(min=1)).mean()
