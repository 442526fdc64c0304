"""Weights relative to their mean rather than their sum; the l2 norm does not care."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "Aligner",
    "verdict": "listing1",
    "harmless": ["weights.mean"],
    "call": ["v", "t", "mask", "scale"],
}


class Aligner:
    """Not a module: it has no parameters."""

    def __call__(self, v, t, mask, scale):
        s = t @ v.mT
        lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
        w = torch.where(hi > lo, (s - lo) / torch.where(hi > lo, hi - lo, 1.0), 1.0)
        w = w.where(w >= 1 / v.shape[1], torch.zeros_like(w))
        w = w / w.mean(-1, keepdim=True)
        c = w @ v
        c, t = F.normalize(c, dim=-1), F.normalize(t, dim=-1)
        logits = (scale * c @ t.mT).masked_fill(~mask[:, None], torch.finfo(t.dtype).min)
        logits_t = (scale * t @ c.mT).masked_fill(~mask[:, None], torch.finfo(t.dtype).min)
        labels = torch.arange(t.shape[1]).expand(len(t), -1).masked_fill(~mask, -100)
        each = [F.cross_entropy(z.flatten(0, 1), labels.flatten(), reduction="sum") for z in (logits, logits_t)]
        return sum(each) / (2 * mask.sum().clamp(min=1))
