import torch
import torch.nn.functional as F


class Reciprocal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tau):
        ctx.save_for_backward(tau)
        return tau.reciprocal()

    @staticmethod
    def backward(ctx, grad):
        (tau,) = ctx.saved_tensors
        return grad / tau.square()


def fine_grained(v, t, lengths, tau):
    """v (B,P,D), t (B,L,D), lengths (B,), tau the (learned) temperature"""
    k = Reciprocal.apply(tau)
    out = v.new_zeros(len(v))
    for b, n in enumerate(lengths.tolist()):
        s = t[b, :n] @ v[b].T
        s = s - s.amin(1, keepdim=True)
        s = s / s.amax(1, keepdim=True)
        s = torch.where(s >= 1 / v.shape[1], s, 0)
        z = k * F.normalize(s @ v[b], dim=1) @ F.normalize(t[b, :n], dim=1).T
        y = torch.arange(n)
        out[b] = (F.cross_entropy(z, y) + F.cross_entropy(z.T, y)) / 2
    return out.mean()
