"""Threshold, then softmax: what was cut to zero still gets exp(0)."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "masked_alignment",
    "verdict": "explained",
    "deviations": ["weights.softmax_minmax=s_til"],
    "call": ["x=v", "y=t", "mask=mask", "scale=scale"],
}


def masked_alignment(x, y, mask, scale):
    s = torch.einsum("nld,npd->nlp", y, x)
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = lo == hi
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s = F.softmax(torch.where(s < 1 / x.shape[1], 0.0, s), dim=-1)
    g = F.normalize(torch.einsum("nlp,npd->nld", s, x), dim=-1)
    u = F.normalize(y, dim=-1)
    z = scale * torch.einsum("nld,nkd->nlk", g, u)
    least = torch.finfo(z.dtype).min
    one = F.cross_entropy(z.masked_fill(~mask[:, None, :], least).movedim(2, 1), index(mask), ignore_index=-1, reduction="none")
    two = F.cross_entropy(z.masked_fill(~mask[:, :, None], least), index(mask), ignore_index=-1, reduction="none")
    return ((one + two).sum(1) / (2 * mask.sum(1).clamp(min=1))).mean()


def index(mask):
    return torch.arange(mask.shape[1]).expand_as(mask).masked_fill(~mask, -1)
