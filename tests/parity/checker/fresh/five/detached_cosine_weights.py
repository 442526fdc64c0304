import torch
import torch.nn.functional as F


@torch.no_grad()
def assignment(words, patches):
    sim = F.normalize(words, dim=-1) @ F.normalize(patches, dim=-1).T
    sim = sim - sim.min(1, keepdim=True).values
    sim = sim / sim.max(1, keepdim=True).values
    sim = sim * (sim >= 1 / len(patches))
    return sim / sim.sum(1, keepdim=True)


def local_loss(patches, words, lengths, log_inv_temp):
    total = 0.0
    for p, w, n in zip(patches, words, lengths):
        w = w[: int(n)]
        g = F.normalize(assignment(w, p) @ p, dim=-1)
        z = g @ F.normalize(w, dim=-1).T * log_inv_temp.exp()
        target = torch.arange(len(w))
        total = total + 0.5 * (F.cross_entropy(z, target) + F.cross_entropy(z.T, target))
    return total / len(patches)
