"""Counts the real tokens of each caption and takes so many from the left."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "local_loss",
    "verdict": "eq6",
    "behaviour": ["edge.padding_place"],
    "call": ["v", "t", "mask_int", "scale"],
}


def local_loss(patches, tokens, attention_mask, logit_scale):
    total = 0.0
    for v, t, n in zip(patches, tokens, attention_mask.sum(1).tolist()):
        if n == 0:
            continue
        t = t[:n]
        s = t @ v.T
        lo, hi = s.amin(1, keepdim=True), s.amax(1, keepdim=True)
        flat = lo == hi
        s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
        s = torch.where(s < 1 / len(v), 0.0, s)
        c = F.normalize(s / s.sum(1, keepdim=True) @ v, dim=1)
        z = logit_scale * c @ F.normalize(t, dim=1).T
        target = torch.arange(n)
        total = total + (F.cross_entropy(z, target) + F.cross_entropy(z.T, target)) / 2
    return total / len(patches)
