import torch


def sparc_fine(v, t, lengths, tau):
    """v: (B, P, D) patches. t: (B, L, D) tokens. lengths: (B,) number of real tokens. tau: temperature."""
    B, L, _ = t.shape
    P = v.size(1)
    pos = torch.arange(L, device=t.device)
    valid = pos[None] < lengths[:, None]                       # B L
    s = torch.einsum("bld,bpd->blp", t, v)
    s = s - s.min(dim=-1, keepdim=True).values
    s = s / s.max(dim=-1, keepdim=True).values.clamp(min=1e-12)
    s = torch.where(s < 1.0 / P, 0.0, s)
    a = s / s.sum(dim=-1, keepdim=True).clamp(min=1e-12)
    c = torch.einsum("blp,bpd->bld", a, v)

    c = c / c.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    u = t / t.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    z = torch.einsum("bld,bmd->blm", c, u) / tau
    neg = torch.finfo(z.dtype).min
    cols = z.masked_fill(~valid[:, None, :], neg)
    rows = z.masked_fill(~valid[:, :, None], neg)
    diag = z.diagonal(dim1=-2, dim2=-1)
    ct = torch.logsumexp(cols, dim=2) - diag
    tc = torch.logsumexp(rows, dim=1) - diag
    per = ((ct + tc) / 2).masked_fill(~valid, 0.0).sum(1)
    return (per / lengths.clamp(min=1)).mean()
