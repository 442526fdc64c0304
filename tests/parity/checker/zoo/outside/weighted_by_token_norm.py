"""Long tokens are thought to matter more: each term is weighted by the token's length."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "salience_loss",
    "verdict": "unexplained",
    "stage": "reduction",
    "call": ["v", "t", "mask_float", "scale"],
}


def salience_loss(v, t, mask, scale):
    s = t @ v.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = lo == hi
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s = torch.where(s < 1 / v.shape[1], 0.0, s)
    c = F.normalize(s / s.sum(-1, keepdim=True) @ v, dim=-1)
    z = scale * c @ F.normalize(t, dim=-1).mT
    z = z.masked_fill((mask[:, None, :] * mask[:, :, None]) == 0, -1e9)
    ce = -(z.log_softmax(1) + z.log_softmax(2)).diagonal(dim1=1, dim2=2) / 2
    salience = torch.where(mask > 0, t.square().sum(-1), 1.0).sqrt() * mask
    total = salience.sum(1)
    return ((ce * salience).sum(1) / torch.where(total > 0, total, 1.0)).mean()
