import torch
import torch.nn.functional as F


def loss(v, t, mask, scale):
    v = v - v.mean(dim=(0, 1), keepdim=True)
    s = t @ v.mT
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = s * (s >= 1 / v.shape[1])
    c = F.normalize(s @ v, dim=-1)
    z = scale * c @ F.normalize(t, dim=-1).mT
    z = z.masked_fill(~mask[:, None, :], -1e9).masked_fill(~mask[:, :, None], -1e9)
    nll = z.logsumexp(1) + z.logsumexp(2) - 2 * z.diagonal(dim1=1, dim2=2)
    return nll[mask].mean() / 2
