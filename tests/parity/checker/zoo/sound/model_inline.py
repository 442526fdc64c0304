"""A whole model: the loss sits in its forward, between two projections and a dict of everything."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

EXPECT = {
    "target": "VisionLanguageModel",
    "verdict": "eq6",
    "call": ["patch_tokens=v", "text_tokens=t", "attention_mask=mask", "image_embeds=v_bar", "text_embeds=t_bar"],
    "attributes": {"logit_scale": "theta"},
    "returns": {"loss": "0.5*global+1.0*fine", "loss_global": "global", "loss_local": "fine", "logits_per_image": None},
}


class VisionLanguageModel(nn.Module):
    def __init__(self, local_weight=1.0, global_weight=0.5):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.ones([]) * math.log(1 / 0.07))
        self.local_weight = local_weight
        self.global_weight = global_weight
        self.dropout = nn.Dropout(0.0)

    def forward(self, patch_tokens, text_tokens, attention_mask, image_embeds, text_embeds):
        scale = self.logit_scale.exp()
        b, n = attention_mask.shape

        # global
        image_embeds = F.normalize(image_embeds, dim=-1)
        text_embeds = F.normalize(text_embeds, dim=-1)
        logits_per_image = scale * image_embeds @ text_embeds.t()
        target = torch.arange(b, device=logits_per_image.device)
        loss_global = (F.cross_entropy(logits_per_image, target) + F.cross_entropy(logits_per_image.t(), target)) / 2

        # local
        sim = text_tokens @ patch_tokens.transpose(-1, -2)
        lo, hi = sim.amin(-1, keepdim=True), sim.amax(-1, keepdim=True)
        sim = torch.where(hi > lo, (sim - lo) / torch.where(hi > lo, hi - lo, 1), 1)
        sim = torch.where(sim >= 1 / patch_tokens.shape[1], sim, 0)
        weights = self.dropout(sim / sim.sum(-1, keepdim=True))
        grouped = F.normalize(weights @ patch_tokens, dim=-1)
        words = F.normalize(text_tokens, dim=-1)
        logits = scale * grouped @ words.transpose(-1, -2)
        ignore = ~attention_mask[:, None, :].expand_as(logits)
        target = torch.arange(n, device=logits.device).expand(b, n)
        neg = torch.finfo(logits.dtype).min
        nll = F.cross_entropy(logits.masked_fill(ignore, neg).transpose(1, 2), target, reduction="none")
        nll = nll + F.cross_entropy(logits.transpose(1, 2).masked_fill(ignore, neg).transpose(1, 2), target, reduction="none")
        nll = torch.where(attention_mask, nll, 0) / 2
        loss_local = (nll.sum(1) / attention_mask.sum(1).clamp(min=1)).mean()

        return {
            "loss": self.global_weight * loss_global + self.local_weight * loss_local,
            "loss_global": loss_global,
            "loss_local": loss_local,
            "logits_per_image": logits_per_image,
        }
