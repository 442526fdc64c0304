"""Cross-entropy with label smoothing."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "smooth_loss",
    "verdict": "explained",
    "deviations": ["loss.smoothing=0.1"],
    "call": ["v", "t", "lengths", "scale"],
}


def smooth_loss(patches, tokens, lengths, scale):
    losses = []
    for v, t, n in zip(patches, tokens, lengths.tolist()):
        if n == 0:
            losses.append(v.sum() * 0)
            continue
        t = t[:n]
        s = t @ v.T
        lo, hi = s.amin(1, keepdim=True), s.amax(1, keepdim=True)
        flat = lo == hi
        s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
        s = torch.where(s >= 1 / len(v), s, 0.0)
        c = s / s.sum(1, keepdim=True) @ v
        z = scale * F.normalize(c, dim=1) @ F.normalize(t, dim=1).T
        y = torch.arange(n)
        one = F.cross_entropy(z, y, label_smoothing=0.1)
        two = F.cross_entropy(z.T, y, label_smoothing=0.1)
        losses.append((one + two) / 2)
    return torch.stack(losses).mean()
