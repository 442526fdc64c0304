"""nan_to_num after 0/0 mends the value; the gradient stays NaN."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "robust_loss",
    "verdict": "conditional",
    "deviations": ["edge.nan_gradient=flat"],
    "also": ["minmax.nan_on_flat", "edge.zero_padding"],
    "conditions": ["no flat rows"],
    "call": ["t", "v", "mask", "scale"],
}


def robust_loss(tokens, patches, mask, scale):
    s = tokens @ patches.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = torch.nan_to_num((s - lo) / (hi - lo), nan=1.0)
    s = torch.where(s < 1.0 / patches.shape[1], 0.0, s)
    c = F.normalize((s / s.sum(-1, keepdim=True)) @ patches, dim=-1)
    u = F.normalize(tokens, dim=-1)
    z = scale * c @ u.mT
    z = z.masked_fill(~(mask[:, None, :] & mask[:, :, None]), torch.finfo(z.dtype).min)
    ce = -(z.log_softmax(1) + z.log_softmax(2)).diagonal(dim1=1, dim2=2) / 2
    ce = ce.masked_fill(~mask, 0.0)
    return (ce.sum(1) / mask.sum(1).clamp(min=1)).mean()
