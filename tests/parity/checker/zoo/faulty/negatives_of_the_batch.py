"""More negatives must be better: all tokens of the batch in one matrix."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "global_negatives_loss",
    "verdict": "conditional",
    "deviations": ["logits.batch_negatives", "reduction.token"],
    "conditions": ["B = 1"],
    "call": ["t", "v", "mask", "scale"],
}


def global_negatives_loss(tokens, patches, mask, scale):
    s = tokens @ patches.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = lo == hi
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s = torch.where(s >= 1 / patches.shape[1], s, 0.0)
    grouped = (s / s.sum(-1, keepdim=True)) @ patches
    grouped, tokens = grouped[mask], tokens[mask]         # (N, D): no padding left
    if len(tokens) == 0:
        return grouped.sum()
    z = scale * F.normalize(grouped, dim=-1) @ F.normalize(tokens, dim=-1).T
    labels = torch.arange(len(z), device=z.device)
    return (F.cross_entropy(z, labels) + F.cross_entropy(z.T, labels)) / 2
