import torch
import torch.nn.functional as F


def group_tokens(t, v):
    s = torch.einsum("...ld,...pd->...lp", t, v)
    lo, hi = s.amin(-1, True), s.amax(-1, True)
    p = (s - lo) / (hi - lo).clamp_min(1e-12)
    p = p / p.sum(-1, True).clamp_min(1e-12)                    # a distribution over patches
    p = p * (p >= 1.0 / p.shape[-1])                            # keep what is above uniform
    p = p / p.sum(-1, True).clamp_min(1e-12)
    return torch.einsum("...lp,...pd->...ld", p, v)


def sparc_fine_loss(v, t, m, scale):
    """v (B,P,D) t (B,L,D) m (B,L) in {0,1} scale 1/tau"""
    c = F.normalize(group_tokens(t, v), dim=-1)
    u = F.normalize(t, dim=-1)
    z = scale * torch.einsum("bld,bkd->blk", c, u)
    m = m.to(z)
    log_m = torch.where(m > 0, 0.0, -1e9).to(z)
    fwd = torch.logsumexp(z + log_m[:, None], 2)
    bwd = torch.logsumexp(z + log_m[:, :, None], 1)
    nll = (fwd + bwd) / 2 - z.diagonal(dim1=1, dim2=2)
    return ((nll * m).sum(1) / m.sum(1).clamp_min(1)).mean()
