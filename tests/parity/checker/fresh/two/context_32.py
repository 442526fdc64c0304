import torch
import torch.nn.functional as F


def loss(v, t, mask, scale):
    context = 32
    t, mask = t[:, :context], mask[:, :context]
    s = t @ v.mT
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = torch.where(s >= 1 / v.shape[1], s, 0.0)
    c = (s / s.sum(-1, keepdim=True)) @ v
    c, w = F.normalize(c, dim=-1), F.normalize(t, dim=-1)
    z = scale * c @ w.mT
    y = scale * w @ c.mT
    z = z.masked_fill(~mask[:, None, :], -torch.inf)
    a = z.logsumexp(2) - z.diagonal(dim1=1, dim2=2)
    y = y.masked_fill(~mask[:, None, :], -torch.inf)
    b = y.logsumexp(2) - y.diagonal(dim1=1, dim2=2)
    tok = torch.where(mask, a + b, 0.0)
    return (tok.sum(1) / mask.sum(1).clamp(min=1)).mean() / 2
