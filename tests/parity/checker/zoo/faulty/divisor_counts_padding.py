"""(loss * mask).mean(): padding adds nothing but is counted."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "masked_mean_loss",
    "verdict": "conditional",
    "deviations": ["reduction.masked_over_all"],
    "conditions": ["no padding"],
    "call": ["v", "t", "mask_float", "scale"],
}


def masked_mean_loss(v, t, mask, scale):
    s = torch.einsum("btd,bpd->btp", t, v)
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = hi == lo
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s = torch.where(s < 1.0 / v.shape[1], 0.0, s)
    c = F.normalize(torch.einsum("btp,bpd->btd", s / s.sum(-1, keepdim=True), v), dim=-1)
    u = F.normalize(t, dim=-1)
    z = scale * torch.einsum("bjd,bkd->bjk", c, u)
    z1 = z.masked_fill(mask[:, None, :] == 0, -1e9)
    z2 = z.transpose(1, 2).masked_fill(mask[:, None, :] == 0, -1e9)
    target = torch.arange(t.shape[1]).expand(t.shape[0], -1)
    one = F.cross_entropy(z1.transpose(1, 2), target, reduction="none")
    two = F.cross_entropy(z2.transpose(1, 2), target, reduction="none")
    return (0.5 * (one + two) * mask).mean()
