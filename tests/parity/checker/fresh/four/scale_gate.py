import torch
import torch.nn.functional as F


def inverse_temperature(theta, limit=50.0):
    scale = theta.exp()
    held = scale.clamp(max=limit)
    return held + (scale - held).detach()      # stops growing on its own, the value stays what it is


def loss(v, t, mask, theta):
    s = t @ v.mT
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = s.masked_fill(s < 1 / v.shape[1], 0.0)
    c = F.normalize(s @ v, dim=-1)
    z = inverse_temperature(theta) * torch.einsum("bjd,bkd->bjk", c, F.normalize(t, dim=-1))
    z = z.masked_fill(~(mask[:, None] & mask[..., None]), -1e20)
    nll = -(z.log_softmax(1) + z.log_softmax(2)).diagonal(dim1=1, dim2=2)
    return (nll.masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp(min=1)).mean() / 2
