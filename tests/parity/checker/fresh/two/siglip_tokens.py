import torch
import torch.nn.functional as F


def loss(v, t, mask, scale):
    s = t @ v.mT
    s = (s - s.amin(-1, True)) / (s.amax(-1, True) - s.amin(-1, True))
    s = torch.where(s >= 1 / v.shape[1], s, 0.0)
    c = F.normalize(s @ v, dim=-1)
    z = scale * c @ F.normalize(t, dim=-1).mT
    sign = 2 * torch.eye(z.shape[-1], dtype=z.dtype) - 1
    pair = mask[:, :, None] & mask[:, None, :]
    nll = torch.where(pair, F.softplus(-sign * z), 0.0)
    return (nll.sum((1, 2)) / mask.sum(1).clamp(min=1)).mean()
