"""The loss as a module, with the temperature learned as in CLIP."""

import math

import torch
from torch import nn

EXPECT = {
    "target": "SparcLoss",
    "verdict": "eq6",
    "call": ["v", "t", "mask"],
    "attributes": {"logit_scale": "theta"},
}


class SparcLoss(nn.Module):
    def __init__(self, init_temperature: float = 0.07):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / init_temperature)))

    def group(self, words, patches):
        score = words @ patches.transpose(-2, -1)
        lo, hi = torch.aminmax(score, dim=-1, keepdim=True)
        flat = lo.eq(hi)
        score = (score - lo).div(torch.where(flat, torch.ones_like(hi), hi - lo))
        score = score.masked_fill(flat, 1.0)
        score = score.masked_fill(score < 1 / patches.size(1), 0.0)
        return score.div(score.sum(-1, keepdim=True)) @ patches

    def forward(self, patches, words, attention_mask):
        grouped = nn.functional.normalize(self.group(words, patches), dim=-1)
        words = nn.functional.normalize(words, dim=-1)
        logits = self.logit_scale.exp() * grouped @ words.transpose(-2, -1)
        pairs = attention_mask[:, :, None] & attention_mask[:, None, :]
        logits = logits.masked_fill(~pairs, torch.finfo(logits.dtype).min)
        nll = -(logits.log_softmax(-1) + logits.log_softmax(-2)).diagonal(dim1=-2, dim2=-1)
        nll = nll.masked_fill(~attention_mask, 0.0)
        lengths = attention_mask.sum(-1).clamp(min=1)
        return (nll.sum(-1) / lengths / 2).mean()
