import torch
import torch.nn as nn
import torch.nn.functional as F


class MultiResolutionLocalLoss(nn.Module):
    """Local loss on a map of patches; `grid` pools the map first (None: its own resolution)."""

    def __init__(self, grid=None):
        super().__init__()
        self.grid = grid

    def to_map(self, x):
        b, n, c = x.shape
        side = round(n ** 0.5)
        if side ** 2 != n:
            raise ValueError(f"{n} patches are no square")
        return x.transpose(1, 2).reshape(b, c, side, side)

    def forward(self, image_tokens, text_tokens, text_lengths, tau):
        fmap = self.to_map(image_tokens)
        fmap = F.adaptive_avg_pool2d(fmap, self.grid or fmap.shape[-1])
        regions = fmap.flatten(2)                                  # (b, c, n)

        s = text_tokens @ regions                                  # (b, l, n)
        smin, smax = torch.aminmax(s, dim=2, keepdim=True)
        s = (s - smin) / (smax - smin)
        s = F.normalize(s.masked_fill(s < 1 / s.size(2), 0), p=1, dim=2)
        c = s @ regions.transpose(1, 2)

        length = text_tokens.size(1)
        valid = torch.arange(length, device=s.device) < text_lengths.unsqueeze(1)
        logits = F.normalize(c, dim=2) @ F.normalize(text_tokens, dim=2).transpose(1, 2) / tau
        pair = valid.unsqueeze(1) & valid.unsqueeze(2)
        logits = logits.masked_fill(~pair, -1e9)
        labels = torch.arange(length, device=s.device).repeat(len(s), 1)
        ce = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        ce = ce + F.cross_entropy(logits, labels, reduction="none")
        ce = (ce * valid).sum(1) / valid.sum(1).clamp(min=1)
        return ce.mean() / 2
