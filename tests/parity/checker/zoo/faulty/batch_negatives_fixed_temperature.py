"""Negatives from the whole batch, tau = 0.05, one direction."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "contrast",
    "verdict": "explained",
    "deviations": ["logits.batch_negatives", "reduction.token", "logits.temperature_constant=0.05", "loss.one_direction=vt"],
    "also": ["edge.no_gradient=theta"],
    "call": ["x=v", "y=t", "m=mask"],
}


def contrast(x, y, m):
    s = torch.einsum("bld,bpd->blp", y, x)
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = torch.where(hi > lo, (s - lo) / torch.where(hi > lo, hi - lo, 1.0), 1.0)
    s = torch.where(s < 1 / x.shape[1], 0.0, s)
    c = torch.einsum("blp,bpd->bld", s / s.sum(-1, keepdim=True), x)[m]
    if len(c) == 0:
        return c.sum()
    z = F.cosine_similarity(c[:, None], y[m][None], dim=-1) / 0.05
    return F.cross_entropy(z, torch.arange(len(z)))
