import torch
import torch.nn.functional as F


class MaskedContrast(torch.autograd.Function):
    """Row-wise cross-entropy against the diagonal over real columns; the softmax is kept for the backward."""

    @staticmethod
    def forward(ctx, z, mask):
        z = z.masked_fill(~mask[:, None, :], float("-inf"))
        logp = z.log_softmax(-1)
        ctx.save_for_backward(logp.exp(), mask)
        n = mask.sum(1).clamp(min=1)
        nll = -logp.diagonal(dim1=1, dim2=2)
        return (nll.masked_fill(~mask, 0).sum(1) / n).mean()

    @staticmethod
    def backward(ctx, g):
        p, mask = ctx.saved_tensors
        p = p - torch.eye(p.shape[1], dtype=p.dtype)
        p = p * mask[:, :, None] * mask[:, None, :]
        return g * p / mask.sum(), None


def fine_grained_contrast(t, v, mask, tau):
    """t (B,L,D), v (B,P,D), mask (B,L) bool, tau"""
    s = t @ v.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    w = (s - lo) / (hi - lo)
    w = torch.where(w >= 1 / v.shape[1], w, 0.0)
    c = F.normalize(w / w.sum(-1, keepdim=True) @ v, dim=-1)
    z = c @ F.normalize(t, dim=-1).mT / tau
    return 0.5 * (MaskedContrast.apply(z, mask) + MaskedContrast.apply(z.mT, mask))
