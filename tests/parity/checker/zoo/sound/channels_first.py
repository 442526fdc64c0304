"""For convolutional towers: patches arrive as a feature map."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "RegionWordLoss",
    "verdict": "eq6",
    "call": ["v_bdhw", "t", "padding", "theta"],
}


class RegionWordLoss(torch.nn.Module):
    """feature_map (B,D,H,W); words (B,L,D); key_padding_mask (B,L), True where padded, as in nn.MultiheadAttention."""

    def forward(self, feature_map, words, key_padding_mask, log_inv_tau):
        b, d, h, w = feature_map.shape
        regions = feature_map.reshape(b, d, h * w)
        att = torch.bmm(words, regions)
        lo = att.amin(2, keepdim=True)
        width = att.amax(2, keepdim=True) - lo
        att = torch.where(width > 0, (att - lo) / torch.where(width > 0, width, 1.0), 1.0)
        att = torch.where(att * (h * w) >= 1, att, 0.0)
        att = att / att.sum(2, keepdim=True)
        context = torch.bmm(att, regions.transpose(1, 2))
        logits = log_inv_tau.exp() * torch.bmm(F.normalize(context, dim=2), F.normalize(words, dim=2).transpose(1, 2))
        bias = torch.zeros_like(logits).masked_fill(key_padding_mask[:, None, :], torch.finfo(logits.dtype).min)
        target = torch.arange(words.size(1), device=words.device).expand(b, -1)
        a = F.cross_entropy((logits + bias).flatten(0, 1), target.flatten(), reduction="none").view(b, -1)
        z = F.cross_entropy((logits.transpose(1, 2) + bias).flatten(0, 1), target.flatten(), reduction="none").view(b, -1)
        both = (a + z).masked_fill(key_padding_mask, 0) / 2
        return (both.sum(1) / (~key_padding_mask).sum(1).clamp(min=1)).mean()
