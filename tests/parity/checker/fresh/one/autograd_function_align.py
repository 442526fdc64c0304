import torch
import torch.nn.functional as F


class SparseAlign(torch.autograd.Function):
    """weights = normalise(threshold(minmax(sim))) with a memory-saving backward."""

    @staticmethod
    def forward(ctx, sim, sigma):
        lo, imin = sim.min(-1, keepdim=True)
        hi, imax = sim.max(-1, keepdim=True)
        span = hi - lo
        live = span > 0
        span = torch.where(live, span, torch.ones_like(span))
        h = torch.where(live, (sim - lo) / span, torch.ones_like(sim))
        w = h * (h >= sigma)
        total = w.sum(-1, keepdim=True)
        a = w / total
        ctx.save_for_backward(a, imin, span, total, live, h >= sigma)
        return a

    @staticmethod
    def backward(ctx, g):
        a, imin, span, total, live, keep = ctx.saved_tensors
        # the range cancels between minmax and the normalisation, so only the minimum carries a gradient of its own
        gw = (g - (g * a).sum(-1, keepdim=True)) / total * keep
        gs = gw / span
        gs = gs.scatter_add(-1, imin, -gs.sum(-1, keepdim=True))
        return torch.where(live, gs, torch.zeros_like(gs)), None


def fine_grained(tokens, patches, mask, tau):
    """tokens (B,L,D), patches (B,P,D), mask (B,L) uint8, tau temperature"""
    m = mask.to(torch.bool)
    tokens = tokens.masked_fill(~m[..., None], 0.5)
    a = SparseAlign.apply(tokens @ patches.mT, 1 / patches.shape[1])
    c = F.normalize(a @ patches, dim=-1)
    z = c @ F.normalize(tokens, dim=-1).mT / tau
    drop = ~m[:, None, :]
    l = z.masked_fill(drop, -1e30).logsumexp(-1) + z.mT.masked_fill(drop, -1e30).logsumexp(-1)
    l = l - 2 * z.diagonal(dim1=1, dim2=2)
    return torch.stack([(row[k].mean() if k.any() else row.sum() * 0) for row, k in zip(l, m)]).mean() / 2
