import torch
from torch import nn


class SparcCriterion(nn.Module):
    def __init__(self, smoothing: float = 0.1):
        super().__init__()
        self.ce = nn.CrossEntropyLoss(label_smoothing=smoothing)
        self.norm = lambda x: nn.functional.normalize(x, dim=-1)
        self.register_parameter("s", nn.Parameter(torch.tensor(14.3)))

    def group(self, t, v):
        a = t @ v.T
        a = (a - a.amin(1, keepdim=True)) / (a.amax(1, keepdim=True) - a.amin(1, keepdim=True))
        a = a.where(a >= 1 / len(v), torch.zeros_like(a))
        return a / a.sum(1, keepdim=True) @ v

    def forward(self, v, t, pad):
        out = []
        for vi, ti in zip(v, (x[~p] for x, p in zip(t, pad))):
            z = self.s * self.norm(self.group(ti, vi)) @ self.norm(ti).T
            y = torch.arange(len(z), device=z.device)
            out.append((self.ce(z, y) + self.ce(z.T, y)) / 2)
        return sum(out) / len(out)
