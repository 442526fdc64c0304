"""One caption at a time, padding cut off by its length: slow, but nothing to get wrong with masks."""

import torch
from torch.nn import functional as F

EXPECT = {
    "target": "compute_loss",
    "verdict": "eq6",
    "call": ["t", "v", "lengths", "tau"],
}


def compute_loss(captions, images, lengths, temperature):
    losses = []
    for caption, image, n in zip(captions, images, lengths.tolist()):
        if n == 0:
            losses.append(image.sum() * 0)
            continue
        caption = caption[:n]
        s = caption @ image.t()
        low, high = s.amin(1, keepdim=True), s.amax(1, keepdim=True)
        equal = (high == low).expand_as(s)
        s = torch.where(equal, torch.ones_like(s), (s - low) / torch.where(high == low, torch.ones_like(high), high - low))
        s = torch.where(s >= 1 / len(image), s, torch.zeros_like(s))
        w = s / s.sum(1, keepdim=True)
        z = F.cosine_similarity((w @ image).unsqueeze(1), caption.unsqueeze(0), dim=-1) / temperature
        y = torch.arange(n, device=z.device)
        losses.append((F.cross_entropy(z, y) + F.cross_entropy(z.t(), y)) / 2)
    return sum(losses) / len(losses)
