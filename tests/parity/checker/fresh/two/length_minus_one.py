import torch
import torch.nn.functional as F


def loss(v, t, mask, scale):
    s = t @ v.mT
    rng = s.amax(-1, keepdim=True) - s.amin(-1, keepdim=True)
    s = (s - s.amin(-1, keepdim=True)) / rng
    s = torch.where(s >= 1 / v.shape[1], s, torch.zeros_like(s))
    c = F.normalize((s / s.sum(-1, keepdim=True)) @ v, dim=-1)
    z = scale * c @ F.normalize(t, dim=-1).mT
    last = mask.cumsum(1).argmax(1)          # index of the last token
    z = z.masked_fill(~mask[:, None, :], -torch.inf)
    a = z.logsumexp(2) - z.diagonal(dim1=1, dim2=2)
    y = (scale * F.normalize(t, dim=-1) @ c.mT).masked_fill(~mask[:, None, :], -torch.inf)
    b = y.logsumexp(2) - y.diagonal(dim1=1, dim2=2)
    tok = torch.where(mask, a + b, 0.0)
    return (tok.sum(1) / last.clamp(min=1)).mean() / 2
