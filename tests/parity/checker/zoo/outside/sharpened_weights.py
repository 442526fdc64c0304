"""Weights are squared before they are divided by their sum, to make them peaky."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "peaky_alignment",
    "verdict": "unexplained",
    "stage": "weights",
    "call": ["t", "v", "mask", "theta"],
}


def peaky_alignment(tokens, patches, mask, log_scale, power=2):
    s = tokens @ patches.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = lo == hi
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s = torch.where(s >= 1 / patches.shape[1], s, 0.0)
    weights = s.pow(power)
    weights = weights / weights.sum(-1, keepdim=True)
    c = F.normalize(weights @ patches, dim=-1)
    z = log_scale.exp() * c @ F.normalize(tokens, dim=-1).mT
    z = z.masked_fill(~(mask[:, None, :] & mask[:, :, None]), torch.finfo(z.dtype).min)
    ce = -(z.log_softmax(1) + z.log_softmax(2)).diagonal(dim1=1, dim2=2) / 2
    return (ce.masked_fill(~mask, 0.0).sum(1) / mask.sum(1).clamp(min=1)).mean()
