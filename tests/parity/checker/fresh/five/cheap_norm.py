import torch


class Unit(torch.autograd.Function):
    """x / |x|; the projection in the backward pass is skipped, it is second order anyway"""

    @staticmethod
    def forward(ctx, x):
        n = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        ctx.save_for_backward(n)
        return x / n

    @staticmethod
    def backward(ctx, grad):
        (n,) = ctx.saved_tensors
        return grad / n


def loss(patches, words, word_lens, inv_temp):
    total = 0
    for v, t, n in zip(patches, words, word_lens):
        t = t[:n]
        s = t.matmul(v.t())
        s = s - s.amin(-1, keepdim=True)
        s = s / s.amax(-1, keepdim=True)
        s = s * (s >= 1 / v.shape[0])
        z = inv_temp * Unit.apply(s.matmul(v)).matmul(Unit.apply(t).t())
        total = total - (z.log_softmax(0) + z.log_softmax(1)).diagonal().mean() / 2
    return total / len(patches)
