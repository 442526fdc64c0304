"""Inner products as logits."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "forward_local",
    "verdict": "explained",
    "deviations": ["norm.missing"],
    "call": ["v", "t", "mask", "scale"],
}


def forward_local(img, txt, keep, scale):
    batch = []
    for v, t, k in zip(img.unbind(), txt.unbind(), keep.unbind()):
        t = t[k]
        if len(t) == 0:
            batch.append(0 * v.sum())
            continue
        s = t @ v.T
        lo, hi = s.amin(1, keepdim=True), s.amax(1, keepdim=True)
        flat = (hi == lo).squeeze(1)
        w = torch.full_like(s, 1 / len(v))
        if (~flat).any():
            h = (s[~flat] - lo[~flat]) / (hi[~flat] - lo[~flat])
            h = torch.where(h >= 1 / len(v), h, 0)
            w = w.index_put((~flat,), h / h.sum(1, keepdim=True))
        logits = scale * (w @ v) @ t.T
        target = torch.arange(len(t), device=t.device)
        batch.append((F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2)
    return sum(batch) / len(batch)
