import torch
from torch.func import vmap


def _caption_loss(t, v, m, scale):
    """One pair: t (L,D), v (P,D), m (L,) 0/1 floats."""
    s = t @ v.T
    lo, hi = s.amin(1, keepdim=True), s.amax(1, keepdim=True)
    ok = hi > lo
    s = torch.where(ok, (s - lo) / torch.where(ok, hi - lo, 1.0), 1.0)
    s = torch.where(s >= 1.0 / v.shape[0], s, 0.0)
    c = (s / s.sum(1, keepdim=True)) @ v
    c = c * torch.rsqrt((c * c).sum(1, keepdim=True))
    norm2 = (t * t).sum(1, keepdim=True)
    u = t * torch.rsqrt(torch.where(norm2 > 0, norm2, 1.0))
    z = scale * c @ u.T
    away = (1.0 - m) * -1e12
    forward = torch.logsumexp(z + away[None, :], 1) - torch.diagonal(z)
    backward = torch.logsumexp(z.T + away[None, :], 1) - torch.diagonal(z)
    keep = m > 0
    both = torch.where(keep, forward + backward, 0.0)
    return both.sum() / (2.0 * m.sum().clamp(min=1.0))


def sparc_f(v, t, m, scale):
    t = torch.where(m[..., None] > 0, t, 1.0)
    return vmap(_caption_loss, in_dims=(0, 0, 0, None))(t, v, m, scale).mean()
