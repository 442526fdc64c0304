import torch
import torch.nn.functional as F


def sparc_fine_flat(v, t, mask, scale):
    """Contrast over the B*L tokens of the batch. v (B,P,D), t (B,L,D), mask (B,L) bool, scale 1/tau"""
    B, L, D = t.shape
    s = t @ v.mT
    s = (s - s.amin(-1, keepdim=True)) / (s.amax(-1, keepdim=True) - s.amin(-1, keepdim=True) + 1e-12)
    s = s.masked_fill(s < 1 / v.shape[1], 0)
    c = F.normalize(s @ v, dim=-1).reshape(B * L, D)
    u = F.normalize(t, dim=-1).reshape(B * L, D)
    z = scale * c @ u.T
    labels = torch.arange(B * L).masked_fill(~mask.reshape(-1), -100)
    return (F.cross_entropy(z, labels, ignore_index=-100) + F.cross_entropy(z.T, labels, ignore_index=-100)) / 2
