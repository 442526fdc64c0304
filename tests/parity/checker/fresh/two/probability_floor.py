import torch
import torch.nn.functional as F


def fine_grained(v, t, lengths, tau):
    mask = torch.arange(t.shape[1]) < lengths[:, None]
    scale = 1 / tau
    s = torch.bmm(t, v.transpose(1, 2))
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo)
    s = s.masked_fill(s < 1.0 / v.size(1), 0)
    c = torch.einsum('blp,bpd->bld', s / s.sum(2, keepdim=True), v)
    c = c / c.norm(dim=-1, keepdim=True)
    w = t / t.norm(dim=-1, keepdim=True)
    z = torch.einsum('bjd,bkd->bjk', c, w) * scale
    y = z.transpose(1, 2)
    nll = 0
    for x in (z, y):
        p = x.masked_fill(~mask[:, None, :], -torch.inf).softmax(-1)
        nll = nll - p.diagonal(dim1=1, dim2=2).clamp(min=1e-6).log()
    return (torch.where(mask, nll, 0.0).sum(1) / mask.sum(1).clamp(min=1)).mean() / 2
