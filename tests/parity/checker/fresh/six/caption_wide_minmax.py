import torch
import torch.nn.functional as F


def finegrained(v, t, lens, tau):
    """v: b p d, t: b l d, lens: b, tau: temperature"""
    loss = []
    for i in range(v.shape[0]):
        ti, vi = t[i, :lens[i]], v[i]
        sim = ti @ vi.T
        sim = (sim - sim.min()) / (sim.max() - sim.min())
        sim = torch.where(sim < 1 / vi.shape[0], 0., sim)
        w = sim / sim.sum(-1, keepdim=True).clamp(min=1e-8)
        c = F.normalize(w @ vi, dim=-1)
        logits = c @ F.normalize(ti, dim=-1).T / tau
        y = torch.arange(logits.shape[0], device=v.device)
        loss.append((F.cross_entropy(logits, y) + F.cross_entropy(logits.T, y)) / 2)
    return torch.stack(loss).mean()
