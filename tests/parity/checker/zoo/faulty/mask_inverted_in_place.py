"""Right in every number; but the caller's mask comes back upside down."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "loss_with_side_effect",
    "verdict": "eq6",
    "behaviour": ["edge.mutates_inputs"],
    "call": ["v", "t", "mask", "scale"],
}


def loss_with_side_effect(v, t, mask, scale):
    lengths = mask.sum(1).clamp(min=1)
    hidden = mask.logical_not_()
    s = t @ v.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = hi == lo
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s = torch.where(s < 1.0 / v.shape[1], 0.0, s)
    c = F.normalize((s / s.sum(-1, keepdim=True)) @ v, dim=-1)
    z = scale * c @ F.normalize(t, dim=-1).mT
    z = z.masked_fill(hidden[:, None, :] | hidden[:, :, None], torch.finfo(z.dtype).min)
    ce = -(z.log_softmax(1) + z.log_softmax(2)).diagonal(dim1=1, dim2=2) / 2
    return (ce.masked_fill(hidden, 0.0).sum(1) / lengths).mean()
