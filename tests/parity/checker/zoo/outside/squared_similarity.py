"""The similarity is squared, so that opposite patches count as alike."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "energy_loss",
    "verdict": "unexplained",
    "stage": "similarity",
    "call": ["v", "t", "mask", "scale"],
}


def energy_loss(v, t, mask, scale):
    s = (t @ v.mT).square()
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = hi == lo
    s_hat = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s_til = torch.where(s_hat < 1.0 / v.shape[1], 0.0, s_hat)
    a = s_til / s_til.sum(-1, keepdim=True)
    c = F.normalize(a @ v, dim=-1)
    z = scale * c @ F.normalize(t, dim=-1).mT
    z = z.masked_fill(~(mask[:, None, :] & mask[:, :, None]), torch.finfo(z.dtype).min)
    ce = -(z.log_softmax(1) + z.log_softmax(2)).diagonal(dim1=1, dim2=2) / 2
    return (ce.masked_fill(~mask, 0.0).sum(1) / mask.sum(1).clamp(min=1)).mean()
