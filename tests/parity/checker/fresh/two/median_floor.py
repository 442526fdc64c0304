import torch
import torch.nn.functional as F


def loss(v, t, mask, scale):
    s = t @ v.mT
    base = s.median(dim=-1, keepdim=True).values     # robust against outliers
    s = (s - base) / (s.amax(-1, keepdim=True) - base)
    s = torch.where(s >= 1 / v.shape[1], s, 0.0)
    c = F.normalize((s / s.sum(-1, keepdim=True)) @ v, dim=-1)
    u = F.normalize(t, dim=-1)
    per = []
    for i in range(len(v)):
        n = int(mask[i].sum())
        z = scale * c[i, :n] @ u[i, :n].T
        per.append(F.cross_entropy(z, torch.arange(n)) + F.cross_entropy(z.T, torch.arange(n)))
    return torch.stack(per).mean() / 2
