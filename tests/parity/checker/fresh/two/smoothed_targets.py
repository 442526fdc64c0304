import torch
import torch.nn as nn

criterion = nn.CrossEntropyLoss(label_smoothing=0.1)


def fg_loss(patches, words, lengths, scale):
    losses = []
    for p, w, n in zip(patches, words, lengths):
        w = w[: int(n)]
        s = w @ p.t()
        lo, hi = s.amin(1, keepdim=True), s.amax(1, keepdim=True)
        s = (s - lo) / (hi - lo)
        s = s * (s >= 1 / p.size(0))
        g = (s / s.sum(1, keepdim=True)) @ p
        z = scale * nn.functional.normalize(g, dim=1) @ nn.functional.normalize(w, dim=1).t()
        y = torch.arange(len(w))
        losses.append((criterion(z, y) + criterion(z.t(), y)) / 2)
    return torch.stack(losses).mean()
