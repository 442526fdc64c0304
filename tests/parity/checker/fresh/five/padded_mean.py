import torch
import torch.nn as nn
import torch.nn.functional as F


class LocalLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.ce = nn.CrossEntropyLoss(reduction="none")

    def forward(self, patch, token, token_mask, scale):
        sim = torch.bmm(token, patch.transpose(1, 2))
        sim = (sim - sim.amin(-1, keepdim=True)) / (sim.amax(-1, keepdim=True) - sim.amin(-1, keepdim=True))
        sim = sim.masked_fill(sim < 1 / patch.size(1), 0)
        g = F.normalize(torch.bmm(sim / sim.sum(-1, keepdim=True), patch), dim=-1)
        token = F.normalize(token, dim=-1)
        z = (scale * torch.bmm(g, token.transpose(1, 2))).masked_fill(token_mask[:, None] == 0, -1e4)
        zt = (scale * torch.bmm(token, g.transpose(1, 2))).masked_fill(token_mask[:, None] == 0, -1e4)
        y = torch.arange(token.size(1)).repeat(len(token))
        loss = self.ce(z.flatten(0, 1), y) + self.ce(zt.flatten(0, 1), y)
        return (loss * token_mask.flatten()).mean() / 2
