import torch
import torch.nn.functional as F


def minmax(x, valid):
    lo = x.masked_fill(~valid, float("inf")).flatten(1).amin(1)[:, None, None]
    hi = x.masked_fill(~valid, float("-inf")).flatten(1).amax(1)[:, None, None]
    return (x - lo) / (hi - lo)


def local(v, t, mask, theta):
    m = mask.bool()
    valid = m[..., None].expand(-1, -1, v.shape[1])
    s = minmax(t @ v.mT, valid)
    s = torch.where((s >= 1 / v.shape[1]) & valid, s, 0.0)
    a = s / s.sum(-1, keepdim=True).clamp(min=1e-30)
    g = F.normalize(a @ v, dim=-1)
    e = F.normalize(t, dim=-1)
    z = theta.exp() * g @ e.mT
    z = z.masked_fill(~(m[:, None] & m[:, :, None]), -1e30)
    d = lambda y: -(y.log_softmax(-1).diagonal(dim1=-2, dim2=-1))
    per = torch.where(m, d(z) + d(z.mT), 0.0).sum(1) / m.sum(1).clamp(min=1)
    return per.mean() / 2
