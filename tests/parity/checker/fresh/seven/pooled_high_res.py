import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class HighResLocalLoss(nn.Module):
    def __init__(self, max_side: int = 12):
        super().__init__()
        self.max_side = max_side
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def reduce(self, patches):
        """keeps the similarity maps small when the resolution goes up"""
        b, p, d = patches.shape
        side = math.isqrt(p)
        assert side * side == p
        if side <= self.max_side:
            return patches
        fmap = patches.view(b, side, side, d).permute(0, 3, 1, 2)
        return F.adaptive_avg_pool2d(fmap, self.max_side).flatten(2).transpose(1, 2)

    def forward(self, image_tokens, caption_tokens, caption_lengths):
        v = self.reduce(image_tokens)
        s = caption_tokens @ v.transpose(1, 2)
        s = s - s.amin(dim=-1, keepdim=True)
        s = s / s.amax(dim=-1, keepdim=True)
        s = s * (s >= 1.0 / v.shape[1])
        c = F.normalize(s @ v / s.sum(dim=-1, keepdim=True), dim=-1)
        t = F.normalize(caption_tokens, dim=-1)
        z = self.logit_scale.exp() * c @ t.transpose(1, 2)
        loss = []
        for zi, n in zip(z, caption_lengths):
            zi = zi[:n, :n]
            nll = (zi.logsumexp(0) + zi.logsumexp(1)) / 2 - zi.diagonal()
            loss.append(nll.mean())
        return {"loss": torch.stack(loss).mean(), "logit_scale": self.logit_scale.exp().item()}
