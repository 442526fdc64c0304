import torch
import torch.nn.functional as F


def contrast(t, v, attn, scale):
    mask = attn > 0.5
    s = t @ v.mT
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = torch.where(s >= 1 / v.shape[1], s, 0.0)
    c = torch.einsum('blp,bpd->bld', s / s.sum(2, keepdim=True), v)
    c, w = F.normalize(c, dim=-1), F.normalize(t, dim=-1)
    z = torch.einsum('bjd,bkd->bjk', c, w) * scale
    y = z.transpose(1, 2)
    size = min(6, len(z))
    parts = []
    for i in range(0, len(z) - size + 1, size):
        m = mask[i:i + size]
        nll = 0
        for x in (z, y):
            x = x[i:i + size].masked_fill(~m[:, None], -torch.inf)
            nll = nll - x.log_softmax(-1).diagonal(dim1=1, dim2=2)
        parts.append((torch.where(m, nll, 0.0).sum(1) / m.sum(1).clamp(min=1)).mean() / 2)
    return torch.stack(parts).mean()
