import torch
import torch.nn.functional as F


def directions(v, t, lens, theta):
    vt, tv = [], []
    for i, n in enumerate(lens):
        words, img = t[i, :n], v[i]
        s = words @ img.T
        s = s - s.min(1, keepdim=True).values
        s = s / s.max(1, keepdim=True).values
        s = s * (s >= 1 / img.shape[0])
        z = theta.exp() * F.normalize(s @ img, dim=1) @ F.normalize(words, dim=1).T
        y = torch.arange(n)
        vt.append(F.cross_entropy(z, y, reduction="sum") / max(n, 1))
        tv.append(F.cross_entropy(z.T, y, reduction="sum") / max(n, 1))
    return torch.stack(vt).mean(), torch.stack(tv).mean()
