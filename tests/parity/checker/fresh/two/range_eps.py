import torch
import torch.nn.functional as F


def local_loss(v, t, pad, theta):
    mask, scale = ~pad, theta.exp()
    s = t @ v.mT
    lo = s.amin(-1, keepdim=True)
    s = (s - lo) / (s.amax(-1, keepdim=True) - lo).clamp(min=1e-6)
    s = s.masked_fill(s < 1.0 / v.size(1), 0)
    c = (s / s.sum(-1, keepdim=True).clamp(min=1e-12)) @ v
    c, w = F.normalize(c, dim=-1, eps=1e-30), F.normalize(t, dim=-1, eps=1e-30)
    z = scale * c @ w.mT
    y = scale * w @ c.mT
    z = z.masked_fill(~mask[:, None, :], -torch.inf)
    a = z.logsumexp(2) - z.diagonal(dim1=1, dim2=2)
    y = y.masked_fill(~mask[:, None, :], -torch.inf)
    b = y.logsumexp(2) - y.diagonal(dim1=1, dim2=2)
    tok = torch.where(mask, a + b, 0.0)
    return (tok.sum(1) / mask.sum(1).clamp(min=1)).mean() / 2
