import torch
import torch.nn.functional as F


def loss_and_parts(images, texts, lens, tau, ent_weight=0.05):
    per, ent = [], []
    for v, t, n in zip(images, texts, lens):
        t = t[:n]
        s = t @ v.T
        s = (s - s.amin(1, keepdim=True)) / (s.amax(1, keepdim=True) - s.amin(1, keepdim=True))
        s = s * (s >= 1 / v.shape[0])
        a = s / s.sum(1, keepdim=True)
        z = F.normalize(a @ v, dim=1) @ F.normalize(t, dim=1).T / tau
        y = torch.arange(n)
        per.append((F.cross_entropy(z, y) + F.cross_entropy(z.T, y)) / 2)
        ent.append(-(a * torch.log(a + 1e-12)).sum(1).mean())  # sharp groups are good groups
    contrast, entropy = torch.stack(per).mean(), torch.stack(ent).mean()
    return contrast + ent_weight * entropy, {"contrast": contrast, "entropy": entropy}
