"""Both axes masked with -inf: the row of a padded token has nothing left."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "loss",
    "verdict": "conditional",
    "deviations": ["logits.nan_all_masked_rows"],
    "conditions": ["no padding"],
    "call": ["v", "t", "mask", "scale"],
}


def loss(v, t, mask, scale):
    s = t @ v.transpose(1, 2)
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = lo == hi
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s = torch.where(s < 1 / v.shape[1], 0.0, s)
    c = (s / s.sum(-1, keepdim=True)) @ v
    z = scale * F.normalize(c, dim=-1) @ F.normalize(t, dim=-1).transpose(1, 2)
    both = mask[:, :, None] & mask[:, None, :]
    z = z.masked_fill(~both, float("-inf"))
    nll = -(F.log_softmax(z, dim=2) + F.log_softmax(z, dim=1)).diagonal(dim1=1, dim2=2)
    return ((nll * mask).sum(1) / mask.sum(1).clamp(min=1)).mean() / 2
