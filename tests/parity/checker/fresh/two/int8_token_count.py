import torch
import torch.nn.functional as F


def sparc_fine(t, v, mask, scale):
    s = torch.einsum('bld,bpd->blp', t, v)
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = s * (s >= 1 / s.shape[-1])
    c = (s / s.sum(-1, keepdim=True)) @ v
    c, w = F.normalize(c, dim=-1), F.normalize(t, dim=-1)
    z = torch.einsum('bjd,bkd->bjk', c, w) * scale
    y = z.transpose(1, 2)
    z = z.masked_fill(~mask[:, None, :], -torch.inf)
    y = y.masked_fill(~mask[:, None, :], -torch.inf)
    nll = -(z.log_softmax(-1) + y.log_softmax(-1)).diagonal(dim1=1, dim2=2)
    m8 = mask.to(torch.int8)
    return torch.where(mask, nll, 0.0).sum() / m8.sum(dtype=torch.int8) / 2
