"""The mean is over captions that have tokens, so an empty one makes the others count for more."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "mean_of_nonempty",
    "verdict": "conditional",
    "deviations": ["edge.all_padding=shifts"],
    "conditions": ["no caption of padding alone"],
    "call": ["v", "t", "mask", "tau"],
}


def mean_of_nonempty(v, t, mask, tau):
    losses = []
    for v_i, t_i, m_i in zip(v, t, mask):
        if m_i.any():
            losses.append(pair(v_i, t_i[m_i], tau))
    return torch.stack(losses).mean() if losses else v.sum() * 0


def pair(v, t, tau):
    s = t @ v.T
    lo, hi = s.amin(1, keepdim=True), s.amax(1, keepdim=True)
    s = torch.where(hi > lo, (s - lo) / torch.where(hi > lo, hi - lo, 1.0), 1.0)
    s = s * (s >= 1.0 / len(v))
    z = F.normalize(s @ v, dim=1) @ F.normalize(t, dim=1).T / tau
    y = torch.arange(len(t))
    return (F.cross_entropy(z, y) + F.cross_entropy(z.T, y)) / 2
