import math
import torch
from torch import nn


class SparcLoss(nn.Module):
    def __init__(self, init_temp=0.07):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / init_temp)))

    def align(self, text, patches):
        d2 = text.pow(2).sum(-1)[:, :, None] + patches.pow(2).sum(-1)[:, None] - 2 * text @ patches.mT
        aff = -d2.sqrt()
        aff = aff - aff.min(-1, keepdim=True)[0]
        aff = aff / aff.max(-1, keepdim=True)[0]
        aff = aff * (aff >= 1 / patches.shape[1])
        return aff / aff.sum(-1, keepdim=True)

    def forward(self, text, patches, pad_mask):
        c = self.align(text, patches) @ patches
        c = c / c.norm(dim=-1, keepdim=True)
        t = text / text.norm(dim=-1, keepdim=True)
        sim = self.logit_scale.exp() * torch.bmm(c, t.mT)
        real = ~pad_mask
        ninf = float("-inf")
        keys = pad_mask.unsqueeze(1)
        pos = sim.diagonal(dim1=1, dim2=2)
        l1 = torch.logsumexp(sim.masked_fill(keys, ninf), -1) - pos
        l2 = torch.logsumexp(sim.mT.masked_fill(keys, ninf), -1) - pos
        per_tok = 0.5 * (l1 + l2).masked_fill(pad_mask, 0)
        return (per_tok.sum(-1) / real.sum(-1).clamp(min=1)).mean()
