import torch

__all__ = ["PairwiseTokenLoss"]


class PairwiseTokenLoss:
    """log(1 + sum_{k != j} exp(z_k - z_j)) form of the cross-entropy; takes a (B,L,L) pair mask."""

    def __init__(self, temperature_first=True):
        self.temperature_first = temperature_first

    def __call__(self, tau, pair_mask, text, vision):
        """tau (), pair_mask (B,L,L) bool = real_j & real_k, text (B,L,D), vision (B,D,P)"""
        score = text @ vision
        lo, hi = score.aminmax(dim=2, keepdim=True)
        scaled = torch.nn.functional.hardtanh((score - lo) / (hi - lo), 0.0, 2.0)
        scaled = scaled * torch.heaviside(scaled.detach() - 1 / vision.shape[2], torch.ones((), dtype=score.dtype))
        c = torch.einsum("blp,bdp->bld", scaled, vision) / scaled.sum(2, keepdim=True)
        z = torch.einsum("bjd,bkd->bjk", c / c.norm(dim=2, keepdim=True), text / text.norm(dim=2, keepdim=True)) / tau
        real = pair_mask.diagonal(dim1=1, dim2=2)
        total = 0.0
        for y in (z, z.transpose(1, 2)):
            gap = y - y.diagonal(dim1=1, dim2=2)[:, :, None]
            gap = gap.masked_fill(~pair_mask, -1e4)
            ce = torch.logsumexp(gap, 2)
            total = total + (torch.where(real, ce, 0.0).sum(1) / real.sum(1).clamp(min=1)).mean()
        return total / 2
