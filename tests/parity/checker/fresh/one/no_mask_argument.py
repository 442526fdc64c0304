import torch
import torch.nn.functional as F


def finegrained(v, t, theta):
    """v (B,P,D), t (B,L,D) padded with the pad embedding, theta log(1/tau)"""
    w = torch.sigmoid(t @ v.mT)
    w = torch.where(w >= 1.0 / v.shape[1], w, 0.0)
    c = F.normalize(w @ v / w.sum(-1, keepdim=True).clamp(min=1e-12), dim=-1)
    z = theta.exp() * c @ F.normalize(t, dim=-1).mT
    y = torch.arange(t.shape[1]).expand(t.shape[:2])
    return 0.5 * F.cross_entropy(z, y) + 0.5 * F.cross_entropy(z.mT, y)
