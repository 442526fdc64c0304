import torch
import torch.nn.functional as F


def loss(v, t, mask, scale):
    b, p, d = v.shape
    v = v.reshape(b, d, p)
    s = torch.einsum("bld,bdp->blp", t, v)
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = torch.where(s >= 1 / p, s, 0.0)
    c = torch.einsum("blp,bdp->bld", s / s.sum(-1, keepdim=True), v)
    z = scale * F.normalize(c, dim=-1) @ F.normalize(t, dim=-1).mT
    z = z.masked_fill(~mask[:, None, :], -1e9).masked_fill(~mask[:, :, None], -1e9)
    nll = z.logsumexp(1) + z.logsumexp(2) - 2 * z.diagonal(dim1=1, dim2=2)
    return (torch.where(mask, nll, 0).sum(1) / mask.sum(1).clamp(min=1)).mean() / 2
