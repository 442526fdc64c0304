import torch
import torch.nn.functional as F


def fine_grained(v, t, lengths, tau):
    mask = torch.arange(t.shape[1]) < lengths[:, None]
    scale = 1 / tau
    s = torch.bmm(t, v.transpose(1, 2))
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = s * (s >= 1 / s.shape[-1])
    a = s / s.sum(-1, keepdim=True)
    step = min(64, v.shape[1])
    c = 0
    for i in range(v.shape[1] // step):
        part = slice(i * step, (i + 1) * step)
        c = c + a[:, :, part] @ v[:, part]
    c, w = F.normalize(c, dim=-1), F.normalize(t, dim=-1)
    z = scale * c @ w.mT
    y = scale * w @ c.mT
    losses = []
    for zi, yi, mi in zip(z, y, mask):
        zi, yi = zi[mi][:, mi], yi[mi][:, mi]
        n = max(1, len(zi))
        losses.append(-(zi.log_softmax(1).diagonal().sum() + yi.log_softmax(1).diagonal().sum()) / (2 * n))
    return torch.stack(losses).mean()
