import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence  # noqa: F401


class PatchWordNCE(nn.Module):
    threshold = 0.1
    temperature = 0.1

    def group(self, w, p):
        s = w @ p.transpose(-1, -2)
        s = s - s.amin(-1, keepdim=True)
        s = s / s.amax(-1, keepdim=True)
        s = s.masked_fill(s < self.threshold, 0)
        return s @ p / s.sum(-1, keepdim=True)

    def forward(self, p, w, lens):
        total = 0
        for pi, wi, n in zip(p, w, lens):
            wi = wi[:n]
            gi = self.group(wi, pi)
            z = F.cosine_similarity(gi.unsqueeze(1), wi.unsqueeze(0), dim=-1).div(self.temperature)
            y = torch.arange(len(z))
            total += (F.cross_entropy(z, y) + F.cross_entropy(z.mT, y)) / 2
        return total / len(p)
