import torch
import torch.nn.functional as F


def loss(batch, temperature):
    """batch: dict of image (B,P,D), text (B,L,D), length (B,)"""
    total = []
    for v, t, n in zip(batch["image"], batch["text"], batch["length"].tolist()):
        t = t[:n]
        s = t @ v.T
        s = (s - s.amin(1, keepdim=True)) / (s.amax(1, keepdim=True) - s.amin(1, keepdim=True))
        s = s * (s >= 1 / len(v))
        z = F.normalize(s @ v, dim=-1) @ F.normalize(t, dim=-1).T / temperature
        y = torch.arange(n)
        each = (F.cross_entropy(z, y, reduction="none") + F.cross_entropy(z.T, y, reduction="none")) / 2
        total.append(each.median())       # one bad word must not spoil a caption
    return torch.stack(total).mean()
