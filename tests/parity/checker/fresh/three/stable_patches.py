import torch
import torch.nn.functional as F

MAX_UPDATE = 1e-3


def stabilised(x):
    """Patch embeddings whose updates are bounded entry by entry."""
    x = x.clone()
    if x.requires_grad:
        x.register_hook(lambda g: g.clamp(-MAX_UPDATE, MAX_UPDATE))
    return x


def sparc_fine(v, t, mask, tau):
    """v (B,P,D), t (B,L,D), mask (B,L) bool, tau"""
    v = stabilised(v)
    s = t @ v.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo + 1e-12)
    s = s.masked_fill(s < 1 / v.shape[1], 0)
    c = F.normalize(s @ v, dim=-1)
    z = c @ F.normalize(t, dim=-1).mT / tau
    dead = ~mask[:, None]
    nll = -(z.masked_fill(dead, -1e9).log_softmax(-1) + z.mT.masked_fill(dead, -1e9).log_softmax(-1)).diagonal(dim1=1, dim2=2)
    return (0.5 * nll.masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp(min=1)).mean()
