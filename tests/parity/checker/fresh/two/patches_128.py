import torch
import torch.nn.functional as F


def sparc_fine(t, v, mask, scale):
    v = v[:, :128]
    s = torch.einsum('bld,bpd->blp', t, v)
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = torch.where(s >= 1 / v.shape[1], s, 0.0)
    c = torch.einsum('blp,bpd->bld', s / s.sum(2, keepdim=True), v)
    c, w = F.normalize(c, dim=-1), F.normalize(t, dim=-1)
    z = scale * c @ w.mT
    y = scale * w @ c.mT
    target = torch.arange(z.shape[1]).expand(len(z), -1).masked_fill(~mask, -100)
    total = 0
    for x in (z, y):
        x = x.masked_fill(~mask[:, None, :], -1e9)
        total = total + F.cross_entropy(x.transpose(1, 2), target, reduction="none", ignore_index=-100)
    return 0.5 * (total.sum(1) / mask.sum(1).clamp(min=1)).mean()
