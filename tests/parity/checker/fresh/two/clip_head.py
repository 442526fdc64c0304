import torch
from torch import nn


class ClipLoss(nn.Module):
    def forward(self, image_embedding, text_embedding, logit_scale):
        i = image_embedding / image_embedding.norm(dim=1, keepdim=True)
        t = text_embedding / text_embedding.norm(dim=1, keepdim=True)
        z = logit_scale.exp() * i @ t.t()
        d = z.diagonal()
        return ((z.logsumexp(0) - d) + (z.logsumexp(1) - d)).mean() / 2
