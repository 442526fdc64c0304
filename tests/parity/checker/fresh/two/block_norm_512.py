import torch
import torch.nn.functional as F


def unit(x, block=512):
    block = min(block, x.shape[-1])
    sq = sum(part.square().sum(-1, keepdim=True) for part in x.split(block, -1)[: x.shape[-1] // block])
    return x * sq.rsqrt()


def sparc_fine(t, v, mask, scale):
    s = t @ v.mT
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = s.masked_fill(s < 1.0 / v.size(1), 0)
    c = torch.einsum('blp,bpd->bld', s / s.sum(2, keepdim=True), v)
    c, w = unit(c), unit(t)
    z = torch.einsum('bjd,bkd->bjk', c, w) * scale
    y = z.transpose(1, 2)
    z = z.masked_fill(~mask[:, None, :], -torch.inf)
    a = z.logsumexp(2) - z.diagonal(dim1=1, dim2=2)
    y = y.masked_fill(~mask[:, None, :], -torch.inf)
    b = y.logsumexp(2) - y.diagonal(dim1=1, dim2=2)
    tok = torch.where(mask, a + b, 0.0)
    return (tok.sum(1) / mask.sum(1).clamp(min=1)).mean() / 2
