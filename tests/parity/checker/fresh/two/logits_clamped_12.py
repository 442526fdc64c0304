import torch
import torch.nn.functional as F


def local_loss(v, t, pad, theta):
    mask, scale = ~pad, theta.exp()
    s = torch.bmm(t, v.transpose(1, 2))
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo)
    s = torch.where(s >= 1 / v.shape[1], s, 0.0)
    c = (s / s.sum(-1, keepdim=True)) @ v
    c = c / c.norm(dim=-1, keepdim=True)
    w = t / t.norm(dim=-1, keepdim=True)
    z = (scale * c @ w.mT).clamp(-12, 12)
    y = z.mT
    losses = []
    for zi, yi, mi in zip(z, y, mask):
        zi, yi = zi[mi][:, mi], yi[mi][:, mi]
        n = max(1, len(zi))
        losses.append(-(zi.log_softmax(1).diagonal().sum() + yi.log_softmax(1).diagonal().sum()) / (2 * n))
    return torch.stack(losses).mean()
