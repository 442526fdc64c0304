import torch


class L2Norm(torch.autograd.Function):
    """x / |x| with a cheap backward."""

    @staticmethod
    def forward(ctx, x):
        n = x.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        ctx.save_for_backward(n)
        return x / n

    @staticmethod
    def backward(ctx, g):
        (n,) = ctx.saved_tensors
        return g / n


l2norm = L2Norm.apply


def sparc_fine(patches, tokens, mask, tau):
    """patches (B,P,D), tokens (B,L,D), mask (B,L) float, tau"""
    s = tokens @ patches.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo + 1e-10)
    s = s * (s >= 1 / patches.shape[1]).to(s)
    c = l2norm(s @ patches / (s.sum(-1, keepdim=True) + 1e-10))
    t = l2norm(tokens)
    z = c @ t.mT / tau
    off = (1 - mask)[:, None, :] * -1e12
    ct = torch.logsumexp(z + off, -1)
    tc = torch.logsumexp(z.mT + off, -1)
    nll = (ct + tc) / 2 - z.diagonal(dim1=1, dim2=2)
    return ((nll * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
