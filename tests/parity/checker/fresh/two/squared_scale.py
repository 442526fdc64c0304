import torch
import torch.nn.functional as F


def loss(v, t, mask, log_scale):
    k = log_scale.exp()
    words = k * F.normalize(t, dim=-1)
    s = words @ F.normalize(v, dim=-1).mT
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = torch.where(s >= 1 / v.shape[1], s, 0.0)
    c = k * F.normalize((s / s.sum(-1, keepdim=True)) @ v, dim=-1)
    z = c @ words.mT
    out = []
    for y in (z, z.mT):
        y = y.masked_fill(~mask[:, None, :], -torch.inf)
        nll = -y.log_softmax(-1).diagonal(dim1=1, dim2=2)
        out.append(nll.masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp(min=1))
    return (out[0] + out[1]).mean() / 2
