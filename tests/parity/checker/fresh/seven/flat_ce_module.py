import torch
import torch.nn as nn
import torch.nn.functional as F


class FlatTokenLoss(nn.Module):
    def __init__(self, init_tau=0.07):
        super().__init__()
        self.tau = nn.Parameter(torch.tensor(init_tau))

    def group(self, v, t):
        s = t @ v.mT
        s = (s - s.amin(-1, keepdim=True)) / (s.amax(-1, keepdim=True) - s.amin(-1, keepdim=True))
        s = s.where(s >= 1 / s.shape[-1], torch.zeros_like(s))
        return (s / s.sum(-1, keepdim=True)) @ F.normalize(v, dim=-1)

    def forward(self, v, t, pad):
        """v (B,P,D), t (B,L,D), pad (B,L) int, 1 where padding"""
        pad = pad.bool()
        c, t = F.normalize(self.group(v, t), dim=-1), F.normalize(t, dim=-1)
        z = c @ t.mT / self.tau
        b, n = pad.shape
        target = torch.arange(n, device=z.device).repeat(b)
        loss = z.new_zeros(b * n)
        for y in (z, z.mT):
            y = y.masked_fill(pad[:, None], -1e4)
            loss = loss + F.cross_entropy(y.reshape(b * n, n), target, reduction='none')
        return (loss / 2 * ~pad.flatten()).mean()
