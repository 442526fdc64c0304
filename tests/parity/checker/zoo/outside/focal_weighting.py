"""Focal loss: easy tokens weigh less."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "focal_alignment_loss",
    "verdict": "unexplained",
    "stage": "loss",
    "call": ["v", "t", "mask", "scale"],
}


def focal_alignment_loss(v, t, mask, scale, gamma=2.0):
    s = t @ v.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = lo == hi
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s = torch.where(s < 1 / v.shape[1], 0.0, s)
    c = F.normalize(s / s.sum(-1, keepdim=True) @ v, dim=-1)
    z = scale * c @ F.normalize(t, dim=-1).mT
    z = z.masked_fill(~(mask[:, None, :] & mask[:, :, None]), torch.finfo(z.dtype).min)
    focal = 0
    for dim in (1, 2):
        log_p = z.log_softmax(dim).diagonal(dim1=1, dim2=2)
        focal = focal - (1 - log_p.exp()) ** gamma * log_p
    focal = focal.masked_fill(~mask, 0.0) / 2
    return (focal.sum(1) / mask.sum(1).clamp(min=1)).mean()
