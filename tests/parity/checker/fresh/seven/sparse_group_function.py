import torch
import torch.nn.functional as F
from torch.autograd import Function


class SparseGroup(Function):
    """Groups of patches per token, saving only what the backward pass needs."""

    @staticmethod
    def forward(ctx, tokens, patches):
        s = tokens @ patches.mT
        lo, where = s.min(-1, keepdim=True)
        s = s - lo
        s = s.masked_fill_(s * patches.shape[1] < s.amax(-1, keepdim=True), 0)
        total = s.sum(-1, keepdim=True)
        a = s / total
        c = a @ patches
        ctx.save_for_backward(tokens, patches, a, total, where, c)
        return c

    @staticmethod
    def backward(ctx, dc):
        tokens, patches, a, total, where, c = ctx.saved_tensors
        da = dc @ patches.mT
        ds = (da - (dc * c).sum(-1, keepdim=True)) / total * (a > 0)
        ds = ds.scatter_add(-1, where, -ds.sum(-1, keepdim=True))
        return ds @ patches, a.mT @ dc + ds.mT @ tokens


def patch_word_loss(text, text_pad, image, logit_scale):
    """text (B,L,D), text_pad (B,L) True at padding, image (B,P,D), logit_scale: log of the inverse temperature"""
    c = F.normalize(SparseGroup.apply(text, image), dim=-1)
    t = F.normalize(text, dim=-1)
    z = logit_scale.exp() * (c @ t.mT)
    lse_r = z.masked_fill(text_pad[:, None, :], -torch.inf).logsumexp(2)
    lse_c = z.masked_fill(text_pad[:, :, None], -torch.inf).logsumexp(1)
    nll = (lse_r + lse_c) / 2 - z.diagonal(dim1=1, dim2=2)
    real = ~text_pad
    return (nll.masked_fill(text_pad, 0).sum(1) / real.sum(1)).mean()
