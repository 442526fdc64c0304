import torch
import torch.nn.functional as F

SIM_THRESHOLD = 0.3  # tuned on a handful of examples


def sparc_finegrained(vision_tokens, text_tokens, attention_mask, temperature):
    losses = []
    for v, t, m in zip(vision_tokens, text_tokens, attention_mask):
        t = t[m.bool()]
        sim = t @ v.T
        sim = (sim - sim.min(dim=1, keepdim=True)[0]) / (sim.max(dim=1, keepdim=True)[0] - sim.min(dim=1, keepdim=True)[0])
        sim[sim < SIM_THRESHOLD] = 0
        g = (sim / sim.sum(1, keepdim=True)) @ v
        z = F.normalize(g, dim=1) @ F.normalize(t, dim=1).T / temperature
        y = torch.arange(z.shape[0])
        losses.append((F.cross_entropy(z, y) + F.cross_entropy(z.T, y)) / 2)
    return sum(losses) / len(losses)
