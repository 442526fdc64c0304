import torch
import torch.nn.functional as F


def _xent(z):
    return F.cross_entropy(z, torch.arange(len(z), device=z.device))


def sparc_total(img_global, txt_global, img_local, txt_local, txt_lengths, tau, lambda_g=0.5, lambda_f=1.0):
    z = F.normalize(img_global, dim=-1) @ F.normalize(txt_global, dim=-1).T / tau
    loss = lambda_g * (_xent(z) + _xent(z.T)) / 2
    for v, t, n in zip(img_local, txt_local, txt_lengths):
        t = t[: int(n)]
        s = t @ v.T
        s = (s - s.min(1, keepdim=True).values) / (s.max(1, keepdim=True).values - s.min(1, keepdim=True).values + 1e-12)
        s = torch.where(s >= 1 / v.shape[0], s, 0)
        c = s @ v / (s.sum(1, keepdim=True) + 1e-12)
        z = F.normalize(c, dim=-1) @ F.normalize(t, dim=-1).T / tau
        loss = loss + lambda_f * (_xent(z) + _xent(z.T)) / 2
    return loss
