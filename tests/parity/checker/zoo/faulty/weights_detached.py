"""The alignment weights are detached 'for stability'."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "alignment_loss",
    "verdict": "explained",
    "deviations": ["weights.detached"],
    "call": ["v", "t", "padding", "scale"],
    "returns": {"loss": "fine", "attention": None},
}


def alignment_loss(patches, tokens, is_padding, scale):
    s = tokens @ patches.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    alike = lo == hi
    s = torch.where(alike, 1.0, (s - lo) / torch.where(alike, 1.0, hi - lo))
    s = torch.where(s >= 1 / patches.shape[1], s, 0.0)
    attention = (s / s.sum(-1, keepdim=True)).detach()
    c = F.normalize(attention @ patches, dim=-1)
    u = F.normalize(tokens, dim=-1)
    z = (scale * c @ u.mT).masked_fill(is_padding[:, None, :], -1e9)
    y = (scale * u @ c.mT).masked_fill(is_padding[:, None, :], -1e9)
    ce = -(z.log_softmax(-1) + y.log_softmax(-1)).diagonal(dim1=1, dim2=2) / 2
    ce = ce.masked_fill(is_padding, 0.0)
    return {"loss": (ce.sum(1) / (~is_padding).sum(1).clamp(min=1)).mean(), "attention": attention}
