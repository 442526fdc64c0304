import torch
import torch.nn.functional as F


def sparc_fine(t, v, mask, scale):
    s = torch.bmm(t, v.transpose(1, 2))
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo)
    s = torch.where(s >= 1 / v.shape[1], s, 0.0)
    c = torch.einsum('blp,bpd->bld', s / s.sum(2, keepdim=True), v)
    c, w = (F.normalize(x, dim=-1, eps=1e-2) for x in (c, t))
    z = torch.einsum('bjd,bkd->bjk', c, w) * scale
    y = z.transpose(1, 2)
    losses = []
    for zi, yi, mi in zip(z, y, mask):
        zi, yi = zi[mi][:, mi], yi[mi][:, mi]
        n = max(1, len(zi))
        losses.append(-(zi.log_softmax(1).diagonal().sum() + yi.log_softmax(1).diagonal().sum()) / (2 * n))
    return torch.stack(losses).mean()
