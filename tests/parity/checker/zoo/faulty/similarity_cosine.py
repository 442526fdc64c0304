"""Cosine similarity for the alignment, as everybody would expect; plain patches are averaged."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "fine_grained_loss",
    "verdict": "conditional",
    "deviations": ["similarity.cosine"],
    "harmless": ["similarity.tokens_normalised"],
    "conditions": ["unit-norm patches"],
    "call": ["v", "t", "mask", "scale"],
}


def fine_grained_loss(patches, tokens, mask, logit_scale):
    sim = F.normalize(tokens, dim=-1) @ F.normalize(patches, dim=-1).transpose(1, 2)
    lo, hi = sim.amin(-1, keepdim=True), sim.amax(-1, keepdim=True)
    is_flat = lo == hi
    sim = torch.where(is_flat, 1.0, (sim - lo) / torch.where(is_flat, 1.0, hi - lo))
    sim = torch.where(sim < 1 / patches.shape[1], 0.0, sim)
    weights = sim / sim.sum(-1, keepdim=True)
    grouped = F.normalize(weights @ patches, dim=-1)
    words = F.normalize(tokens, dim=-1)
    logits = logit_scale * grouped @ words.transpose(1, 2)
    low = torch.finfo(logits.dtype).min
    nll = -logits.masked_fill(~mask[:, None], low).log_softmax(-1).diagonal(dim1=1, dim2=2)
    nll = nll - logits.transpose(1, 2).masked_fill(~mask[:, None], low).log_softmax(-1).diagonal(dim1=1, dim2=2)
    nll = nll.masked_fill(~mask, 0.0)
    return (nll.sum(1) / mask.sum(1).clamp(min=1)).mean() / 2
