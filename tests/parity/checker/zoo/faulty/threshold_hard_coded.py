"""A threshold of 0.3, found in a config and kept."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "sparc_loss",
    "verdict": "explained",
    "deviations": ["threshold.constant=0.3"],
    "call": ["image=v", "text=t", "mask=mask", "scale=scale"],
}


def sparc_loss(image, text, mask, scale, sigma=0.3):
    s = text @ image.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = torch.where(hi > lo, (s - lo) / torch.where(hi > lo, hi - lo, 1.0), 1.0)
    s = s * (s >= sigma)
    c = F.normalize(s / s.sum(-1, keepdim=True) @ image, dim=-1)
    t = F.normalize(text, dim=-1)
    z = scale * c @ t.mT
    z = torch.where(mask[:, None] & mask[..., None], z, torch.finfo(z.dtype).min)
    ce = -(F.log_softmax(z, 1) + F.log_softmax(z, 2)).diagonal(dim1=1, dim2=2) / 2
    ce = torch.where(mask, ce, 0.0)
    return (ce.sum(1) / mask.sum(1).clamp(min=1)).mean()
