import torch
import torch.nn.functional as F


def grounding(v, t):
    s = t @ v.mT
    s = s - s.amin(-1, True)
    s = s / s.amax(-1, True)
    s = torch.where(s >= 1 / s.shape[-1], s, 0.0)
    return s / s.sum(-1, True)


def criterion(v, t, valid, theta):
    c = grounding(v, t) @ v
    steps = torch.arange(1, c.shape[1] + 1, dtype=c.dtype)
    c = c.cumsum(1) / steps[:, None]
    z = theta.exp() * F.normalize(c, dim=-1) @ F.normalize(t, dim=-1).mT
    pair = valid[:, None] & valid[..., None]
    z = torch.where(pair, z, -1e22)
    nll = z.logsumexp(-1) + z.logsumexp(-2) - 2 * z.diagonal(dim1=-2, dim2=-1)
    return (nll.masked_fill(~valid, 0).sum(-1) / valid.sum(-1).clamp(min=1)).mean() / 2
