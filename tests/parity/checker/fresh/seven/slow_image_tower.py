import torch
import torch.nn as nn
import torch.nn.functional as F


class GradMultiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


class TokenLevelLoss(nn.Module):
    def __init__(self, feature_grad_mult: float = 0.1):
        super().__init__()
        self.feature_grad_mult = feature_grad_mult
        self.log_inv_temp = nn.Parameter(torch.tensor(2.6))

    def forward(self, features, text, text_padding):
        """features (B,P,D) of the image, text (B,L,D), text_padding (B,L) True at padding"""
        features = GradMultiply.apply(features, self.feature_grad_mult)
        scores = torch.bmm(text, features.transpose(1, 2))
        lowest = scores.min(2, keepdim=True).values
        highest = scores.max(2, keepdim=True).values
        scores = (scores - lowest) / (highest - lowest)
        scores = scores.masked_fill(scores < 1.0 / features.size(1), 0.0)
        grouped = torch.bmm(scores / scores.sum(2, keepdim=True), features)

        logits = torch.bmm(F.normalize(grouped, dim=2), F.normalize(text, dim=2).transpose(1, 2))
        logits = logits * self.log_inv_temp.exp()
        hide = text_padding.unsqueeze(1)
        lprobs = torch.stack([
            F.log_softmax(logits.masked_fill(hide, float("-inf")), dim=2).diagonal(dim1=1, dim2=2),
            F.log_softmax(logits.transpose(1, 2).masked_fill(hide, float("-inf")), dim=2).diagonal(dim1=1, dim2=2),
        ])
        nll = -lprobs.mean(0).masked_fill(text_padding, 0.0)
        return (nll.sum(1) / (~text_padding).sum(1)).mean()
