import math

import torch
from torch import nn
import torch.nn.functional as F


class PatchGrouping(nn.Module):
    @torch.no_grad()
    def assign(self, t, v):
        s = t @ v.mT
        mn, mx = torch.aminmax(s, dim=-1, keepdim=True)
        s = (s - mn) / (mx - mn + 1e-10)
        s[s < 1 / v.size(1)] = 0
        return s / (s.sum(-1, keepdim=True) + 1e-10)

    def forward(self, t, v):
        return self.assign(t, v) @ v


class LocalSparc(nn.Module):
    def __init__(self):
        super().__init__()
        self.grouping = PatchGrouping()
        self.theta = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, text, image, pad):
        c = F.normalize(self.grouping(text, image), dim=-1)
        u = F.normalize(text, dim=-1)
        total = 0
        for ci, ui, real in zip(c, u, ~pad):
            z = self.theta.exp() * ci[real] @ ui[real].T
            y = torch.arange(len(z))
            total = total + F.cross_entropy(z, y) + F.cross_entropy(z.T, y)
        return total / (2 * len(c))
