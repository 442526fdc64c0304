"""The other way round: every patch collects the tokens that resemble it, and patches are contrasted."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "patch_to_text_loss",
    "verdict": "explained",
    "deviations": ["similarity.patches_group"],
    "call": ["v", "t", "lengths", "scale"],
}


def patch_to_text_loss(image_patches, text_tokens, text_lengths, scale):
    total = []
    for patches, tokens, n in zip(image_patches, text_tokens, text_lengths.tolist()):
        if n == 0:
            total.append(patches.sum() * 0)
            continue
        tokens = tokens[:n]
        sim = patches @ tokens.t()                        # (P, L)
        low, high = sim.amin(1, keepdim=True), sim.amax(1, keepdim=True)
        flat = low == high
        sim = torch.where(flat, 1.0, (sim - low) / torch.where(flat, 1.0, high - low))
        sim = torch.where(sim < 1.0 / n, 0.0, sim)
        grouped = (sim / sim.sum(1, keepdim=True)) @ tokens
        logits = scale * F.normalize(patches, dim=1) @ F.normalize(grouped, dim=1).t()
        target = torch.arange(len(patches))
        total.append((F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2)
    return torch.stack(total).mean()
