import torch
import torch.nn as nn
import torch.nn.functional as F


class ForegroundContrast(nn.Module):
    def __init__(self, log_scale: float = 2.66):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(log_scale))

    def foreground(self, words, regions):
        sim = torch.bmm(words, regions.transpose(1, 2))
        sim = (sim - sim.amin(2, True)) / (sim.amax(2, True) - sim.amin(2, True))
        sim = torch.where(sim >= 1 / sim.size(2), sim, torch.zeros_like(sim))
        sim = sim / sim.sum(2, keepdim=True)
        background = regions.mean(1, keepdim=True)
        return torch.bmm(sim, regions) - background

    def forward(self, words, regions, valid):
        """words (B,L,D), regions (B,P,D), valid (B,L) bool"""
        fg = F.normalize(self.foreground(words, regions), dim=2)
        wd = F.normalize(words, dim=2)
        z = self.log_scale.exp() * torch.bmm(fg, wd.transpose(1, 2))
        z_r = z.masked_fill(~valid[:, None, :], -torch.inf)
        z_c = z.masked_fill(~valid[:, :, None], -torch.inf)
        nll = (z_r.logsumexp(2) + z_c.logsumexp(1)) / 2 - z.diagonal(dim1=1, dim2=2)
        per_image = nll.masked_fill(~valid, 0).sum(1) / valid.sum(1)
        return per_image.mean(), per_image
