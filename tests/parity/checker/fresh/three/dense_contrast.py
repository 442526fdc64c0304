import torch
import torch.nn.functional as F


def dense_contrast(vis, txt, mask, tau):
    """vis (B,P,D), txt (B,L,D), mask (B,L) bool, tau"""
    s = txt @ vis.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo + 1e-12)
    s = s * (s >= 1 / vis.shape[1])
    c, t = F.normalize(s @ vis, dim=-1), F.normalize(txt, dim=-1)
    z = c @ t.mT / tau
    L = z.shape[1]
    negative = mask[:, None, :] & ~torch.eye(L, dtype=torch.bool)
    pos = z.diagonal(dim1=1, dim2=2)
    use = mask & (mask.sum(1, keepdim=True) > 1)

    def direction(y):
        return y.masked_fill(~negative, -1e9).logsumexp(-1) - pos

    nll = torch.where(use, direction(z) + direction(z.mT), 0) / 2
    return (nll.sum(1) / mask.sum(1).clamp(min=1)).mean()
