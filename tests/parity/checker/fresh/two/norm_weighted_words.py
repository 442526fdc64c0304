import torch
import torch.nn.functional as F


def loss(v, t, mask, scale):
    importance = t.norm(dim=-1) * mask
    importance = importance / importance.sum(-1, keepdim=True).clamp(min=1e-12)
    s = t @ v.mT
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = torch.where(s >= 1 / v.shape[1], s, 0.0)
    c = F.normalize(s @ v, dim=-1)
    z = scale * c @ F.normalize(t, dim=-1).mT
    z = z.masked_fill(~mask[:, None, :], -1e14).masked_fill(~mask[:, :, None], -1e14)
    nll = z.logsumexp(1) + z.logsumexp(2) - 2 * z.diagonal(dim1=1, dim2=2)
    return (nll * importance).sum(1).mean() / 2
