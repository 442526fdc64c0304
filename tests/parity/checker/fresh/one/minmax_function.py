import torch
import torch.nn.functional as F


class MinMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, s):
        lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
        y = (s - lo) / (hi - lo)
        ctx.save_for_backward(y, hi - lo)
        return y

    @staticmethod
    def backward(ctx, g):
        y, span = ctx.saved_tensors
        g = g - g.mean(-1, keepdim=True)
        return g / span


class FineGrainedLoss:
    def __init__(self, threshold=None):
        self.threshold = threshold

    def __call__(self, *, text, image, mask, log_scale):
        y = MinMax.apply(text @ image.mT)
        y = F.threshold(y, self.threshold or 1 / image.shape[-2], 0.0)
        c = F.normalize(F.normalize(y, p=1, dim=-1) @ image, dim=-1)
        z = log_scale.exp() * c @ F.normalize(text, dim=-1).mT
        per = []
        for zi, mi in zip(z, mask.bool()):
            zi = zi[mi][:, mi]
            per.append(-(zi.log_softmax(0).trace() + zi.log_softmax(1).trace()) / (2 * len(zi)))
        return sum(per) / len(per)
