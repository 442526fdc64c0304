import torch
import torch.nn.functional as F


MAX_GRID = 7 * 7


def loss(v, t, mask, scale):
    s = torch.bmm(t, v.transpose(1, 2))
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = s * (s >= 1 / min(v.shape[1], MAX_GRID))
    c = torch.einsum('blp,bpd->bld', s / s.sum(2, keepdim=True), v)
    c, w = F.normalize(c, dim=-1), F.normalize(t, dim=-1)
    z = torch.einsum('bjd,bkd->bjk', c, w) * scale
    y = z.transpose(1, 2)
    losses = []
    for zi, yi, mi in zip(z, y, mask):
        zi, yi = zi[mi][:, mi], yi[mi][:, mi]
        n = max(1, len(zi))
        losses.append(-(zi.log_softmax(1).diagonal().sum() + yi.log_softmax(1).diagonal().sum()) / (2 * n))
    return torch.stack(losses).mean()
