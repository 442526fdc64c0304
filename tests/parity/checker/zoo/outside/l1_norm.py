"""p=1 in F.normalize."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "manhattan_loss",
    "verdict": "unexplained",
    "stage": "norm",
    "call": ["v", "t", "mask_int", "scale"],
}


def manhattan_loss(v, t, mask, scale):
    valid = mask.bool()
    s = t @ v.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = lo == hi
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s = s.masked_fill(s < 1 / v.shape[1], 0.0)
    c = s / s.sum(-1, keepdim=True) @ v
    c_hat = F.normalize(c, p=1, dim=-1)
    t_hat = F.normalize(t, p=1, dim=-1)
    z = scale * c_hat @ t_hat.mT
    z = z.masked_fill(~(valid[:, None, :] & valid[:, :, None]), torch.finfo(z.dtype).min)
    ce = -(z.log_softmax(1) + z.log_softmax(2)).diagonal(dim1=1, dim2=2) / 2
    return (ce.masked_fill(~valid, 0.0).sum(1) / valid.sum(1).clamp(min=1)).mean()
