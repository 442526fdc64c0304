import torch


def sparc_by_gram(v, t, mask, log_scale):
    """Never forms the groups: c.t_k = a s_k and |c|^2 = a' (V V') a.      v (B,P,D), t (B,L,D), mask (B,L) bool"""
    score = t @ v.mT                                             # (B,L,P)
    gram = v @ v.mT                                              # (B,P,P)
    lo, hi = score.amin(-1, keepdim=True), score.amax(-1, keepdim=True)
    above = score - lo
    a = above * (above >= (hi - lo) / v.shape[1])
    a = a / a.sum(-1, keepdim=True).clamp(min=1e-30)
    inner = a @ score.mT                                         # c_j . t_k
    c_norm = torch.einsum("blp,bpq,blq->bl", a, gram, a).clamp(min=1e-30).sqrt()
    t_norm = t.square().sum(-1).clamp(min=1e-30).sqrt()
    z = log_scale.exp() * inner / (c_norm[:, :, None] * t_norm[:, None, :])
    col = torch.where(mask, 0.0, -1e30).to(z)
    own = z.diagonal(dim1=1, dim2=2)
    nll = 0.5 * ((z + col[:, None, :]).logsumexp(2) + (z + col[:, :, None]).logsumexp(1)) - own
    return ((nll * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
