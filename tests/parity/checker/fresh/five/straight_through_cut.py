import torch
import torch.nn.functional as F


def cut(h, sigma):
    """Straight-through: the cut patches keep their gradient, so that they can come back."""
    return h + (torch.where(h >= sigma, h, torch.zeros_like(h)) - h).detach()


def sparc_fine(patches, tokens, mask, inv_tau):
    out = []
    for v, t, m in zip(patches, tokens, mask):
        t = t[m]
        s = t @ v.T
        lo, hi = s.amin(1, keepdim=True), s.amax(1, keepdim=True)
        h = cut((s - lo) / (hi - lo), 1 / len(v))
        z = inv_tau * F.normalize(h @ v, dim=1) @ F.normalize(t, dim=1).T
        y = torch.arange(len(t))
        out.append((F.cross_entropy(z, y) + F.cross_entropy(z.T, y)) / 2)
    return torch.stack(out).mean()
