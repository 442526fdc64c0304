import torch
from torch import nn
import torch.nn.functional as F


class LocalContrast(nn.Module):
    def __init__(self, tau=0.07):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(tau))

    def forward(self, text, image, pad):
        """text (B,L,D), image (B,P,D), pad (B,L) True at padding -> loss"""
        text, image = F.normalize(text, dim=-1), F.normalize(image, dim=-1)
        sim = text @ image.mT
        sim = sim - sim.min(-1, keepdim=True).values
        sim = sim / (sim.max(-1, keepdim=True).values + 1e-10)
        sim = torch.where(sim >= 1 / image.shape[1], sim, torch.zeros_like(sim))
        grouped = F.normalize(sim @ image, dim=-1)
        z = grouped @ text.mT / self.temperature
        losses = []
        for zi, p in zip(z, pad):
            zi = zi[~p][:, ~p]
            y = torch.arange(len(zi), device=zi.device)
            losses.append(F.cross_entropy(zi, y) + F.cross_entropy(zi.T, y))
        return torch.stack(losses).mean() / 2
