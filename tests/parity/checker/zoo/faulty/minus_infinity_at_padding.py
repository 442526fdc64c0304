"""Padded words are filled with -inf before the min-max."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "compute",
    "verdict": "conditional",
    "deviations": ["minmax.nan_from_padding"],
    "conditions": ["no padding"],
    "call": ["v", "t", "mask", "tau"],
}


def compute(image_features, text_features, text_mask, temperature):
    sim = torch.einsum("bnd,bmd->bnm", text_features, image_features)
    sim = sim.masked_fill(~text_mask.unsqueeze(-1), float("-inf"))
    lo, hi = sim.amin(-1, keepdim=True), sim.amax(-1, keepdim=True)
    flat = (hi == lo) & text_mask.unsqueeze(-1)
    sim = torch.where(flat, torch.ones_like(sim), (sim - lo) / torch.where(flat, torch.ones_like(hi), hi - lo))
    sim = torch.where(sim < 1 / image_features.shape[1], torch.zeros_like(sim), sim)
    grouped = (sim / sim.sum(-1, keepdim=True)) @ image_features
    grouped = F.normalize(grouped, dim=-1)
    text = F.normalize(text_features, dim=-1)
    logits = grouped @ text.transpose(1, 2) / temperature
    logits_a = logits.masked_fill(~text_mask[:, None, :], -1e4)
    logits_b = logits.transpose(1, 2).masked_fill(~text_mask[:, None, :], -1e4)
    labels = torch.arange(text.shape[1]).expand(text.shape[0], -1)
    a = F.cross_entropy(logits_a.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    b = F.cross_entropy(logits_b.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    return (((a + b) * text_mask).sum(1) / text_mask.sum(1).clamp(min=1) / 2).mean()
