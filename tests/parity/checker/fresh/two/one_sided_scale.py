import torch
import torch.nn.functional as F


def info_nce(q, k, m, scale=1.0):
    z = (scale * q @ k.mT).masked_fill(~m[:, None, :], -torch.inf)
    return -z.log_softmax(-1).diagonal(dim1=1, dim2=2).masked_fill(~m, 0.0)


def loss(v, t, mask, scale):
    s = t @ v.mT
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = torch.where(s >= 1 / v.shape[1], s, 0.0)
    c = F.normalize((s / s.sum(-1, keepdim=True)) @ v, dim=-1)
    w = F.normalize(t, dim=-1)
    tok = info_nce(c, w, mask, scale) + info_nce(w, c, mask)
    return (tok.sum(1) / mask.sum(1).clamp(min=1)).mean() / 2
