"""A sum over captions."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "fgc_loss",
    "verdict": "conditional",
    "conditions": ["B = 1"],
    "deviations": ["reduction.sum"],
    "call": ["v", "t", "mask_int", "theta"],
}


def fgc_loss(v, t, mask, t_param):
    mask = mask > 0
    s = torch.bmm(t, v.transpose(1, 2))
    lo, hi = s.amin(2, keepdim=True), s.amax(2, keepdim=True)
    even = lo == hi
    s = torch.where(even, 1.0, (s - lo) / torch.where(even, 1.0, hi - lo))
    s = torch.where(s < 1.0 / s.shape[2], 0.0, s)
    c = F.normalize(torch.bmm(s / s.sum(2, keepdim=True), v), dim=2)
    u = F.normalize(t, dim=2)
    z = torch.exp(t_param) * torch.bmm(c, u.transpose(1, 2))
    floor = torch.finfo(z.dtype).min
    l1 = z.masked_fill(~mask[:, None, :], floor).logsumexp(2) - z.diagonal(dim1=1, dim2=2)
    l2 = z.masked_fill(~mask[:, :, None], floor).logsumexp(1) - z.diagonal(dim1=1, dim2=2)
    n = mask.sum(1).clamp(min=1)
    return ((l1 + l2).masked_fill(~mask, 0).sum(1) / n / 2).sum()
