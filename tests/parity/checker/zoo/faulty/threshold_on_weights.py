"""Reads the prose: weights that sum to one are compared with 1/P, then normalised again."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "sparse_attention_loss",
    "verdict": "explained",
    "deviations": ["threshold.on_weights"],
    "call": ["v", "t", "mask", "scale"],
}


def sparse_attention_loss(v, t, mask, scale):
    s = t @ v.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = hi == lo
    a = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    a = a / a.sum(-1, keepdim=True)
    a = a * (a >= 1.0 / v.shape[1])
    a = a / a.sum(-1, keepdim=True)
    c = F.normalize(a @ v, dim=-1)
    u = F.normalize(t, dim=-1)
    z = scale * c @ u.mT
    pair = mask[:, :, None] & mask[:, None, :]
    z = z.masked_fill(~pair, torch.finfo(z.dtype).min)
    ce = -(z.log_softmax(1) + z.log_softmax(2)).diagonal(dim1=1, dim2=2)
    return (ce.masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp(min=1)).mean() / 2
