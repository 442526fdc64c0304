import torch
import torch.nn.functional as F


def sparc_fine(v, t, mask, tau):
    """v (B,P,D), t (B,L,D), mask (B,L) bool, tau. Gradients are kept away from the padded part of t."""
    B, L = mask.shape
    index = torch.arange(L, device=t.device)
    last = mask.sum(1, keepdim=True) - 1
    live = (index < last).unsqueeze(-1)
    t = torch.where(live, t, t.detach())
    s = t @ v.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo + 1e-12)
    s = s * (s >= 1 / v.shape[1])
    c = F.normalize(s @ v, dim=-1)
    z = c @ F.normalize(t, dim=-1).mT / tau
    drop = ~mask[:, None, :]
    nll = z.masked_fill(drop, -1e9).logsumexp(-1) + z.mT.masked_fill(drop, -1e9).logsumexp(-1) - 2 * z.diagonal(dim1=1, dim2=2)
    return (nll.masked_fill(~mask, 0).sum(1) / (2 * mask.sum(1).clamp(min=1))).mean()
