"""The vision tower is thought to be frozen, so patches are detached at the door."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "text_only_update",
    "verdict": "explained",
    "deviations": ["edge.no_gradient=v"],
    "call": ["v", "t", "mask", "scale"],
}


def text_only_update(patches, tokens, mask, scale):
    patches = patches.detach()
    s = tokens @ patches.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = hi == lo
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s = torch.where(s < 1.0 / patches.shape[1], 0.0, s)
    c = F.normalize((s / s.sum(-1, keepdim=True)) @ patches, dim=-1)
    z = scale * c @ F.normalize(tokens, dim=-1).mT
    z = z.masked_fill(~(mask[:, None, :] & mask[:, :, None]), torch.finfo(z.dtype).min)
    ce = -(z.log_softmax(1) + z.log_softmax(2)).diagonal(dim1=1, dim2=2) / 2
    return (torch.where(mask, ce, 0.0).sum(1) / mask.sum(1).clamp(min=1)).mean()
