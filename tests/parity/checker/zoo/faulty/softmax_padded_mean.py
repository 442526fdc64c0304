"""Softmax attention, padded keys multiplied to zero, divisor B*L."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "TokenAlignment.compute",
    "verdict": "explained",
    "deviations": ["weights.softmax", "logits.padding_filled_zero", "reduction.masked_over_all"],
    "call": ["v", "t", "mask_float", "scale"],
}


class TokenAlignment:
    @staticmethod
    def compute(v, t, mask, scale):
        attn = F.softmax(t @ v.mT, dim=-1)
        c, u = F.normalize(attn @ v, dim=-1), F.normalize(t, dim=-1)
        z = scale * (c @ u.mT) * (mask[:, :, None] * mask[:, None, :])
        labels = torch.arange(z.shape[1]).expand(z.shape[0], -1)
        a = F.cross_entropy(z, labels, reduction="none")
        b = F.cross_entropy(z.mT, labels, reduction="none")
        return ((a + b) / 2 * mask).mean()
