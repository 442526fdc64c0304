import torch
import torch.nn.functional as F


def sparc_local(v, t, mask, logit_scale):
    """v (B,P,D), t (B,L,D), mask (B,L) bool, logit_scale log(1/tau).

    The alignment serves as a target, hence it is computed from frozen similarities.
    """
    s = torch.einsum("bld,bpd->blp", t, v).detach()
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo).clamp(min=1e-12)
    s = torch.where(s >= 1 / v.shape[1], s, 0.0)
    a = s / s.sum(-1, keepdim=True).clamp(min=1e-12)
    c = F.normalize(a @ v, dim=-1)
    z = logit_scale.exp() * c @ F.normalize(t, dim=-1).mT
    far = ~mask[:, None, :]
    nll = -(z.masked_fill(far, -1e9).log_softmax(-1) + z.mT.masked_fill(far, -1e9).log_softmax(-1)).diagonal(dim1=1, dim2=2)
    return (nll.masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp(min=1)).mean() / 2
