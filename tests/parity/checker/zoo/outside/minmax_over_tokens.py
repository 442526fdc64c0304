"""min and max run over the words of the caption instead of over the patches."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "loss_over_pairs",
    "verdict": "unexplained",
    "stage": "minmax",
    "call": ["t", "v", "lengths", "scale"],
}


def loss_over_pairs(words, patches, lengths, scale):
    out = []
    for w, p, n in zip(words, patches, lengths.tolist()):
        w = w[:n]
        if n == 0:
            out.append(p.sum() * 0)
            continue
        sim = w @ p.T
        low, high = sim.amin(0, keepdim=True), sim.amax(0, keepdim=True)
        same = low == high
        sim = torch.where(same, 1.0, (sim - low) / torch.where(same, 1.0, high - low))
        sim = torch.where(sim < 1 / len(p), 0.0, sim)
        total = sim.sum(1, keepdim=True)
        att = torch.where(total == 0, 1 / len(p), sim / torch.where(total == 0, 1.0, total))
        z = scale * F.normalize(att @ p, dim=1) @ F.normalize(w, dim=1).T
        y = torch.arange(n)
        out.append((F.cross_entropy(z, y) + F.cross_entropy(z.T, y)) / 2)
    return torch.stack(out).mean()
