"""Tokens are normalised, the grouped patches are not."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "RegionLoss",
    "verdict": "explained",
    "deviations": ["norm.missing_c"],
    "call": ["v_bdhw", "t", "mask", "scale"],
}


class RegionLoss:
    def __call__(self, fmap, words, mask, scale):
        b, c, h, w = fmap.shape
        flat = fmap.view(b, c, h * w)
        att = words @ flat
        low, high = att.amin(2, keepdim=True), att.amax(2, keepdim=True)
        same = low == high
        att = torch.where(same, 1.0, (att - low) / torch.where(same, 1.0, high - low))
        att = torch.where(att < 1 / (h * w), 0.0, att)
        ctx = (att / att.sum(2, keepdim=True)) @ flat.mT
        words = F.normalize(words, dim=2)
        z = scale * (ctx @ words.mT)
        floor = torch.finfo(z.dtype).min
        ce = -z.masked_fill(~mask[:, None], floor).log_softmax(2).diagonal(dim1=1, dim2=2)
        ce = ce - z.mT.masked_fill(~mask[:, None], floor).log_softmax(2).diagonal(dim1=1, dim2=2)
        return (torch.where(mask, ce, 0.0).sum(1) / mask.sum(1).clamp(min=1)).mean() / 2
