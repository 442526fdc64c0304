import torch
import torch.nn.functional as F


def _align(s):
    s = s - s.min(dim=-1, keepdim=True).values
    s = s / s.max(dim=-1, keepdim=True).values
    s = F.threshold(s, 1 / s.size(-1), 0.0)
    return F.normalize(s, p=1, dim=-1)


def loss(v, t, mask, scale):
    c = F.normalize(_align(t @ v.mT) @ v, p=1, dim=-1)
    u = F.normalize(t, p=1, dim=-1)
    z = scale * c @ u.mT
    ids = torch.arange(t.size(1)).expand(t.size(0), -1).masked_fill(~mask, -100)
    z1 = z.masked_fill(~mask[:, None, :], -1e12)
    z2 = z.mT.masked_fill(~mask[:, None, :], -1e12)
    one = F.cross_entropy(z1.mT, ids, reduction="none")
    two = F.cross_entropy(z2.mT, ids, reduction="none")
    return ((one + two).sum(1) / mask.sum(1).clamp(min=1) / 2).mean()
