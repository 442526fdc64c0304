import torch
import torch.nn.functional as F


def loss(v, t, mask, scale):
    s = torch.einsum('bld,bpd->blp', t, v)
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo)
    top, at = s.topk(min(32, s.shape[-1]), dim=-1)
    s = torch.zeros_like(s).scatter(-1, at, torch.where(top >= 1 / v.shape[1], top, 0.0))
    c = (s / s.sum(-1, keepdim=True)) @ v
    c = c / c.norm(dim=-1, keepdim=True)
    w = t / t.norm(dim=-1, keepdim=True)
    z = torch.einsum('bjd,bkd->bjk', c, w) * scale
    y = z.transpose(1, 2)
    target = torch.arange(z.shape[1]).expand(len(z), -1).masked_fill(~mask, -100)
    total = 0
    for x in (z, y):
        x = x.masked_fill(~mask[:, None, :], -1e9)
        total = total + F.cross_entropy(x.transpose(1, 2), target, reduction="none", ignore_index=-100)
    return 0.5 * (total.sum(1) / mask.sum(1).clamp(min=1)).mean()
