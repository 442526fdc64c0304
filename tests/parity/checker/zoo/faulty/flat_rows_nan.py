"""min-max as one writes it down: 0/0 where all patches look alike."""

import torch
from torch.nn.functional import cosine_similarity, cross_entropy

EXPECT = {
    "target": "sparc",
    "verdict": "conditional",
    "deviations": ["minmax.nan_on_flat"],
    "conditions": ["no flat rows"],
    "call": ["a=v", "b=t", "c=mask", "d=scale"],
}


def sparc(a, b, c, d):
    losses = []
    for x, y, m in zip(a, b, c):
        y = y[m]
        if len(y) == 0:
            losses.append(x.sum() * 0)
            continue
        s = y @ x.T
        s = (s - s.amin(1, keepdim=True)) / (s.amax(1, keepdim=True) - s.amin(1, keepdim=True))
        s = s * (s >= 1 / len(x))
        g = (s / s.sum(1, keepdim=True)) @ x
        z = d * cosine_similarity(g[:, None], y[None], dim=-1)
        k = torch.arange(len(y))
        losses.append(cross_entropy(z, k) / 2 + cross_entropy(z.T, k) / 2)
    return torch.stack(losses).mean()
