import torch
import torch.nn as nn
import torch.nn.functional as F


class MinMaxFn(torch.autograd.Function):
    """reference for the triton kernel"""

    @staticmethod
    def forward(ctx, x):
        mn = x.amin(-1, keepdim=True)
        mx, arg = x.max(-1, keepdim=True)
        y = (x - mn) / (mx - mn)
        ctx.save_for_backward(y, mx - mn, arg)
        return y

    @staticmethod
    def backward(ctx, dy):
        y, rng, arg = ctx.saved_tensors
        dx = dy / rng
        # the maximum moves the range
        dx = dx.scatter_add(-1, arg, -(dy * y / rng).sum(-1, keepdim=True))
        return dx


class FineGrainedLoss(nn.Module):
    def forward(self, image_tokens, text_tokens, text_lengths, log_scale):
        scores = MinMaxFn.apply(text_tokens @ image_tokens.mT)
        scores = scores * (scores >= 1 / image_tokens.shape[1]).to(scores.dtype)
        context = (scores / scores.sum(-1, keepdim=True)) @ image_tokens
        loss = []
        for c, t, n in zip(context, text_tokens, text_lengths):
            sim = log_scale.exp() * F.normalize(c[:n], dim=-1) @ F.normalize(t[:n], dim=-1).T
            lab = torch.arange(sim.shape[0], device=sim.device)
            loss.append(F.cross_entropy(sim, lab) / 2 + F.cross_entropy(sim.T, lab) / 2)
        return torch.stack(loss).mean()
