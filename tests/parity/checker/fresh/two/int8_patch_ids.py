import torch
import torch.nn.functional as F


def local_loss(v, t, pad, theta):
    mask, scale = ~pad, theta.exp()
    ids = torch.arange(v.shape[1]).to(torch.int8)     # raster order
    v = v[:, ids.long()]
    s = torch.einsum('bld,bpd->blp', t, v)
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo)
    s = s * (s >= 1 / s.shape[-1])
    c = torch.einsum('blp,bpd->bld', s / s.sum(2, keepdim=True), v)
    c = c / c.norm(dim=-1, keepdim=True)
    w = t / t.norm(dim=-1, keepdim=True)
    z = scale * c @ w.mT
    y = scale * w @ c.mT
    target = torch.arange(z.shape[1]).expand(len(z), -1).masked_fill(~mask, -100)
    total = 0
    for x in (z, y):
        x = x.masked_fill(~mask[:, None, :], -1e9)
        total = total + F.cross_entropy(x.transpose(1, 2), target, reduction="none", ignore_index=-100)
    return 0.5 * (total.sum(1) / mask.sum(1).clamp(min=1)).mean()
