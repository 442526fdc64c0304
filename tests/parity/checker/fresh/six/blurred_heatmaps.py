import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class HeatmapAlign(nn.Module):
    """Smooths the heat map of each word over neighbouring patches before it is used (3x3, borders not padded)."""

    def heatmaps(self, image_tokens, text_tokens):
        b, p, _ = image_tokens.shape
        side = math.isqrt(p)
        maps = torch.einsum('bld,bpd->blp', text_tokens, image_tokens).view(b, -1, side, side)
        maps = F.avg_pool2d(maps, kernel_size=3, stride=1, padding=1, count_include_pad=False)
        return maps.flatten(2)

    def forward(self, image_tokens, text_tokens, text_padding_mask, logit_scale):
        maps = self.heatmaps(image_tokens, text_tokens)
        maps = maps - maps.amin(dim=2, keepdim=True)
        maps = maps / maps.amax(dim=2, keepdim=True)
        maps = maps * (maps >= 1.0 / maps.shape[2])
        maps = maps / maps.sum(dim=2, keepdim=True)
        visual = F.normalize(maps @ image_tokens, dim=2)
        text = F.normalize(text_tokens, dim=2)
        logits = logit_scale * visual @ text.transpose(1, 2)

        b, n = text_padding_mask.shape
        target = torch.arange(n).expand(b, n).masked_fill(text_padding_mask, -1)
        kw = dict(ignore_index=-1, reduction='none')
        l1 = F.cross_entropy(logits.masked_fill(text_padding_mask[:, None], -math.inf).transpose(1, 2), target, **kw)
        l2 = F.cross_entropy(logits.masked_fill(text_padding_mask[:, :, None], -math.inf), target, **kw)
        return (0.5 * (l1 + l2).sum(1) / (target >= 0).sum(1)).mean()
