import torch
import torch.nn.functional as F


def clip(a, b, scale):
    z = scale * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T
    y = torch.arange(len(z))
    return (F.cross_entropy(z, y) + F.cross_entropy(z.T, y)) / 2


def local(v, t, mask, scale):
    s = t @ v.mT
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = torch.where(s >= 1 / v.shape[1], s, 0.0)
    c = F.normalize(s / s.sum(-1, keepdim=True) @ v, dim=-1)
    z = scale * c @ F.normalize(t, dim=-1).mT
    ce = 0
    for y in (z, z.mT):
        ce = ce - y.masked_fill(~mask[:, None], -torch.inf).log_softmax(-1).diagonal(dim1=1, dim2=2)
    return (torch.where(mask, ce, 0.0).sum(1) / mask.sum(1).clamp(min=1)).mean() / 2


def sparc_total(v_bar, t_bar, v, t, mask, log_scale, lambda_g=0.5, lambda_f=1.0):
    scale = log_scale.exp()
    g, f = clip(v_bar, t_bar, scale), local(v, t, mask, scale)
    return {"loss": lambda_g * g + lambda_f * f, "global": g.detach(), "local": f.detach()}
