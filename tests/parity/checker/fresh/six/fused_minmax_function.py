"""Word/patch grouping with a memory-saving op: the (B, L, P) similarities are stored once, not four times."""
import torch
import torch.nn.functional as F


class _SparseMinMax(torch.autograd.Function):
    """y = minmax(s) with everything under `cut` set to zero."""

    @staticmethod
    def forward(ctx, s, cut):
        lo, i_lo = s.min(dim=-1, keepdim=True)
        hi, i_hi = s.max(dim=-1, keepdim=True)
        span = hi - lo
        y = (s - lo) / span
        kept = y >= cut
        ctx.save_for_backward(y, kept, span, i_lo, i_hi)
        return y * kept

    @staticmethod
    def backward(ctx, gy):
        y, kept, span, i_lo, i_hi = ctx.saved_tensors
        g = gy * kept / span
        along = (g * y).sum(-1, keepdim=True)
        g_lo = along - g.sum(-1, keepdim=True)
        return g.scatter_add(-1, i_lo, g_lo).scatter_add(-1, i_hi, -along), None


def grouped_regions(words, regions):
    s = torch.bmm(words, regions.transpose(1, 2))
    w = _SparseMinMax.apply(s, 1.0 / regions.size(1))
    return torch.bmm(w / w.sum(-1, keepdim=True), regions)


def fine_grained_loss(words, regions, word_lens, log_tau):
    """words (B, L, D); regions (B, P, D); word_lens (B,); log_tau: log of the temperature."""
    inv_tau = torch.exp(-log_tau)
    g = grouped_regions(words, regions)
    total = words.new_zeros(())
    for b, n in enumerate(word_lens.tolist()):
        z = inv_tau * F.normalize(g[b, :n], dim=1) @ F.normalize(words[b, :n], dim=1).t()
        y = torch.arange(n, device=z.device)
        total = total + F.cross_entropy(z, y) + F.cross_entropy(z.t(), y)
    return total / (2 * len(words))
