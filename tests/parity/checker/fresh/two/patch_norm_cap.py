import torch
import torch.nn.functional as F


def fine_grained(v, t, lengths, tau):
    mask = torch.arange(t.shape[1]) < lengths[:, None]
    scale = 1 / tau
    v = v * (12 / v.norm(dim=-1, keepdim=True)).clamp(max=1)    # tame outlier patches
    s = torch.einsum('bld,bpd->blp', t, v)
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = s.masked_fill(s < 1.0 / v.size(1), 0)
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
