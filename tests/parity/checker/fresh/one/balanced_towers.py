import torch
import torch.nn.functional as F


class ScaleGrad(torch.autograd.Function):
    """Identity whose backward multiplies by a constant, to balance the towers."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -ctx.factor * g, None


def sparc_fine_balanced(v, t, pad, scale, text_factor=1.0):
    """v (B,P,D), t (B,L,D), pad (B,L) True = padding, scale 1/tau"""
    t = ScaleGrad.apply(t, text_factor)
    s = torch.bmm(t, v.mT)
    mn, mx = s.aminmax(dim=-1, keepdim=True)
    s = (s - mn) / (mx - mn).clamp_min(1e-12)
    s = s.masked_fill(s < 1 / v.shape[1], 0)
    g = F.normalize(torch.bmm(s, v), dim=-1)
    z = scale * torch.bmm(g, F.normalize(t, dim=-1).mT)
    z1, z2 = (q.masked_fill(pad[:, None], -1e9) for q in (z, z.mT))
    y = torch.arange(z.shape[1]).repeat(len(z), 1).masked_fill(pad, -1)
    ce = sum(F.cross_entropy(q.mT, y, ignore_index=-1, reduction="none") for q in (z1, z2))
    return 0.5 * (ce.sum(1) / (~pad).sum(1).clamp(min=1)).mean()
