"""Mean and standard deviation in place of minimum and range."""

import torch
from torch import nn
from torch.nn.functional import normalize

EXPECT = {
    "target": "ZScoreAlignment",
    "verdict": "unexplained",
    "stage": "minmax",
    "call": ["v", "t", "mask"],
    "attributes": {"logit_scale": "theta"},
}


class ZScoreAlignment(nn.Module):
    def __init__(self):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, patches, tokens, mask):
        sim = tokens @ patches.mT
        mean = sim.mean(-1, keepdim=True)
        var = (sim - mean).square().mean(-1, keepdim=True)
        sim = (sim - mean) / torch.where(var == 0, 1.0, var).sqrt()
        sim = torch.where(var == 0, torch.ones_like(sim), sim)
        sim = torch.where(sim >= 1 / patches.shape[1], sim, 0.0)
        att = sim / sim.sum(-1, keepdim=True)
        z = self.logit_scale.exp() * normalize(att @ patches, dim=-1) @ normalize(tokens, dim=-1).mT
        z = z.masked_fill(~(mask[:, None, :] & mask[:, :, None]), torch.finfo(z.dtype).min)
        ce = -(z.log_softmax(1) + z.log_softmax(2)).diagonal(dim1=1, dim2=2) / 2
        return (ce.masked_fill(~mask, 0.0).sum(1) / mask.sum(1).clamp(min=1)).mean()
