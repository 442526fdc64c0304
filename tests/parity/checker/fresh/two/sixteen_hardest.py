import torch
import torch.nn.functional as F


def contrast(t, v, attn, scale):
    mask = attn > 0.5
    s = torch.einsum('bld,bpd->blp', t, v)
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo)
    s = torch.where(s >= 1 / v.shape[1], s, 0.0)
    c = torch.einsum('blp,bpd->bld', s / s.sum(2, keepdim=True), v)
    c = c / c.norm(dim=-1, keepdim=True)
    w = t / t.norm(dim=-1, keepdim=True)
    z = scale * c @ w.mT
    y = scale * w @ c.mT
    nll = 0
    for x in (z, y):
        x = x.masked_fill(~mask[:, None, :], -torch.inf)
        hard = x.topk(min(16, x.shape[-1]), dim=-1).values
        nll = nll + hard.logsumexp(-1) - x.diagonal(dim1=1, dim2=2)
    return (torch.where(mask, nll, 0.0).sum(1) / mask.sum(1).clamp(min=1)).mean() / 2
