import torch
import torch.nn.functional as F


def sparc_alignment(tokens, patches):
    s = torch.bmm(tokens, patches.transpose(1, 2))
    s = (s - s.amin(2, True)) / (s.amax(2, True) - s.amin(2, True) + 1e-8)
    s = torch.where(s >= 1.0 / patches.size(1), s, torch.zeros_like(s))
    return s / s.sum(2, True).clamp(min=1e-8)


def sparc_fine(patches, tokens, lens, inv_tau):
    """patches (B,P,D), tokens (B,L,D), lens list[int], inv_tau"""
    a = sparc_alignment(tokens, patches)
    patches = F.normalize(patches, dim=-1)
    tokens = F.normalize(tokens, dim=-1)
    c = F.normalize(torch.bmm(a, patches), dim=-1)
    loss = 0.0
    for ci, ti, n in zip(c, tokens, lens):
        z = inv_tau * ci[:n] @ ti[:n].T
        y = torch.arange(n)
        loss = loss + F.cross_entropy(z, y) / 2 + F.cross_entropy(z.T, y) / 2
    return loss / len(lens)
