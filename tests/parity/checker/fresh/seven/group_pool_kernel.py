import torch
import torch.nn as nn
import torch.nn.functional as F


class WeightedPool(torch.autograd.Function):
    """sum_p w_p v_p / sum_p w_p for every token, fused"""

    @staticmethod
    def forward(ctx, w, v):
        total = w.sum(-1, keepdim=True)
        out = (w @ v) / total
        ctx.save_for_backward(w, v, total, out)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        w, v, total, out = ctx.saved_tensors
        grad_w = (grad_out @ v.mT - (grad_out * out).sum(-1, keepdim=True)) / total
        grad_v = w.mT @ grad_out
        return grad_w, grad_v


class PoolingLocalLoss(nn.Module):
    def forward(self, text_embeds, image_embeds, attention_mask, logit_scale):
        """attention_mask: additive, 0 for tokens and a large negative number for padding; logit_scale: log"""
        s = text_embeds @ image_embeds.mT
        s = s - s.amin(-1, keepdim=True)
        s = s / s.amax(-1, keepdim=True)
        s = torch.where(s < 1 / image_embeds.shape[1], 0.0, s)
        c = F.normalize(WeightedPool.apply(s, image_embeds), dim=-1)
        z = logit_scale.exp() * c @ F.normalize(text_embeds, dim=-1).mT

        key_bias = attention_mask[:, None, :]
        row = torch.log_softmax(z + key_bias, -1).diagonal(dim1=1, dim2=2)
        col = torch.log_softmax(z.mT + key_bias, -1).diagonal(dim1=1, dim2=2)
        real = attention_mask == 0
        nll = -torch.where(real, row + col, 0.0).sum(1) / real.sum(1)
        return nll.mean() / 2
