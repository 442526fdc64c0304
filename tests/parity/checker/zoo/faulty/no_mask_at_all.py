"""There is no mask in the signature: padding is a token like any other."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "sparc_fgc",
    "verdict": "conditional",
    "deviations": ["logits.padding_not_masked", "reduction.mean_all"],
    "also": ["edge.padding_leak", "edge.zero_padding"],
    "conditions": ["no padding"],
    "call": ["image_patches=v", "text_tokens=t", "temperature=tau"],
}


def sparc_fgc(image_patches, text_tokens, temperature):
    b, n, _ = text_tokens.shape
    sim = text_tokens @ image_patches.transpose(1, 2)
    low, high = sim.amin(-1, keepdim=True), sim.amax(-1, keepdim=True)
    same = low == high
    sim = torch.where(same, 1.0, (sim - low) / torch.where(same, 1.0, high - low))
    sim = torch.where(sim < 1.0 / image_patches.shape[1], 0.0, sim)
    grouped = (sim / sim.sum(-1, keepdim=True)) @ image_patches
    logits = F.normalize(grouped, dim=-1) @ F.normalize(text_tokens, dim=-1).transpose(1, 2) / temperature
    labels = torch.arange(n, device=logits.device).expand(b, n)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.transpose(1, 2), labels)) / 2
