import torch
import torch.nn.functional as F


def fine_grained(v, t, lengths, tau):
    mask = torch.arange(t.shape[1]) < lengths[:, None]
    scale = 1 / tau
    s = t @ v.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo)
    s = torch.where(s >= 1 / v.shape[1], s, 0.0)
    c = (s / s.sum(-1, keepdim=True)) @ v
    c = c / c.norm(dim=-1, keepdim=True)
    w = t / t.norm(dim=-1, keepdim=True)
    z = scale * c @ w.mT
    pos = torch.arange(z.shape[1])
    z = z.masked_fill((pos[:, None] - pos).abs() > 16, -1e9)
    y = z.mT
    z = z.masked_fill(~mask[:, None, :], -torch.inf)
    a = z.logsumexp(2) - z.diagonal(dim1=1, dim2=2)
    y = y.masked_fill(~mask[:, None, :], -torch.inf)
    b = y.logsumexp(2) - y.diagonal(dim1=1, dim2=2)
    tok = torch.where(mask, a + b, 0.0)
    return (tok.sum(1) / mask.sum(1).clamp(min=1)).mean() / 2
