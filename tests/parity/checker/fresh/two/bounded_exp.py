import torch
import torch.nn.functional as F


def local_loss(v, t, pad, theta):
    mask, scale = ~pad, theta.exp()
    s = torch.einsum('bld,bpd->blp', t, v)
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo)
    s = s.masked_fill(s < 1.0 / v.size(1), 0)
    c = (s / s.sum(-1, keepdim=True)) @ v
    c = c / c.norm(dim=-1, keepdim=True)
    w = t / t.norm(dim=-1, keepdim=True)
    z = torch.einsum('bjd,bkd->bjk', c, w) * scale
    y = z.transpose(1, 2)
    m = mask.to(z.dtype)
    nll = 0
    for x in (z, y):
        den = (x.clamp(max=30).exp() * m[:, None, :]).sum(-1)
        nll = nll + den.clamp(min=1e-30).log() - x.diagonal(dim1=1, dim2=2)
    return ((nll * m).sum(1) / m.sum(1).clamp(min=1)).mean() / 2
