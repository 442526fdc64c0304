"""Divides both embeddings by tau: the logits get 1/tau squared."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "tempered_loss",
    "verdict": "unexplained",
    "stage": "logits",
    "call": ["v", "t", "mask", "tau"],
}


def tempered_loss(v, t, mask, tau):
    s = t @ v.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = lo == hi
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s = torch.where(s < 1 / v.shape[1], 0.0, s)
    c = F.normalize(s / s.sum(-1, keepdim=True) @ v, dim=-1)
    u = F.normalize(t, dim=-1)
    z = (c / tau) @ (u / tau).mT
    z = z.masked_fill(~(mask[:, None, :] & mask[:, :, None]), torch.finfo(z.dtype).min)
    ce = -(z.log_softmax(1) + z.log_softmax(2)).diagonal(dim1=1, dim2=2) / 2
    return (ce.masked_fill(~mask, 0.0).sum(1) / mask.sum(1).clamp(min=1)).mean()
