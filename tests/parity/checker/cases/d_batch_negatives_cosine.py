import torch
import torch.nn.functional as F


def loss(v, t, mask, scale):
    v, u = F.normalize(v, dim=-1), F.normalize(t, dim=-1)
    s = t @ v.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = hi == lo
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s = torch.where(s < 1 / v.shape[1], 0.0, s)
    c = F.normalize(s / s.sum(-1, keepdim=True) @ v, dim=-1)
    z = scale * c[mask] @ u[mask].T
    y = torch.arange(len(z))
    return (F.cross_entropy(z, y) + F.cross_entropy(z.T, y)) / 2
