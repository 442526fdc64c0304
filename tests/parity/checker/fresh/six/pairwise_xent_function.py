import torch
import torch.nn.functional as F


class DiagonalXent(torch.autograd.Function):
    """Mean of the cross entropies along rows and columns of a square matrix of logits."""

    @staticmethod
    def forward(ctx, logits):
        ctx.save_for_backward(logits)
        pos = logits.diagonal()
        return 0.5 * (logits.logsumexp(0) - pos).mean() + 0.5 * (logits.logsumexp(1) - pos).mean()

    @staticmethod
    def backward(ctx, g):
        logits, = ctx.saved_tensors
        n = logits.shape[0]
        grad = logits.softmax(1)
        grad.diagonal().sub_(1)
        return g * grad / n


def sparsify(sim):
    sim = (sim - sim.amin(-1, keepdim=True)) / (sim.amax(-1, keepdim=True) - sim.amin(-1, keepdim=True))
    return torch.where(sim < 1 / sim.shape[-1], torch.zeros((), dtype=sim.dtype), sim)


def compute_local(text, vision, lengths, scale):
    """text, vision: (B, L, D), (B, P, D); lengths: list; scale: 1/temperature"""
    out = []
    for t, v, n in zip(text, vision, lengths):
        t = t[:n]
        w = sparsify(t @ v.T)
        c = w @ v / w.sum(-1, keepdim=True)
        out.append(DiagonalXent.apply(scale * F.normalize(c, dim=-1) @ F.normalize(t, dim=-1).T))
    return torch.stack(out).mean()
