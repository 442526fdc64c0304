"""text.mean(1), as in the listing of the paper, in a weighted total."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "sparc_total",
    "verdict": "conditional",
    "deviations": ["global.pools_padding"],
    "also": ["edge.padding_leak"],
    "conditions": ["no padding"],
    "call": ["image=v", "text=t", "mask=mask", "scale=scale"],
    "returns": "0.5*global+1.0*fine",
}


def clip(a, b, scale):
    z = scale * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T
    y = torch.arange(len(z))
    return (F.cross_entropy(z, y) + F.cross_entropy(z.T, y)) / 2


def sparc_total(image, text, mask, scale, w_global=0.5, w_local=1.0):
    loss = w_global * clip(image.mean(1), text.mean(1), scale)
    s = torch.einsum("bld,bpd->blp", text, image)
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = torch.where(hi > lo, (s - lo) / torch.where(hi > lo, hi - lo, 1.0), 1.0)
    s = torch.where(s < 1 / image.shape[1], 0.0, s)
    c = torch.einsum("blp,bpd->bld", s / s.sum(-1, keepdim=True), image)
    for i in range(len(c)):
        if mask[i].any():
            loss = loss + w_local / len(c) * clip(c[i, mask[i]], text[i, mask[i]], scale)
    return loss
