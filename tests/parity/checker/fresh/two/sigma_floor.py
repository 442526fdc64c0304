import torch
import torch.nn.functional as F


def contrast(t, v, attn, scale):
    mask = attn > 0.5
    s = torch.einsum('bld,bpd->blp', t, v)
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    sigma = max(1 / v.shape[1], 0.05)
    s = torch.where(s < sigma, 0.0, s)
    c = (s / s.sum(-1, keepdim=True)) @ v
    c, w = F.normalize(c, dim=-1), F.normalize(t, dim=-1)
    z = torch.einsum('bjd,bkd->bjk', c, w) * scale
    y = z.transpose(1, 2)
    target = torch.arange(z.shape[1]).expand(len(z), -1).masked_fill(~mask, -100)
    total = 0
    for x in (z, y):
        x = x.masked_fill(~mask[:, None, :], -1e9)
        total = total + F.cross_entropy(x.transpose(1, 2), target, reduction="none", ignore_index=-100)
    return 0.5 * (total.sum(1) / mask.sum(1).clamp(min=1)).mean()
