"""tau = 0.07, for ever."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "sparc_local",
    "verdict": "explained",
    "deviations": ["logits.temperature_constant=0.07"],
    "also": ["edge.no_gradient=theta"],
    "call": ["v", "t", "mask"],
}

TEMPERATURE = 0.07


def sparc_local(patches, tokens, mask):
    s = torch.einsum("bld,bpd->blp", tokens, patches)
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = hi == lo
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s = torch.where(s < 1.0 / patches.shape[1], 0.0, s)
    c = F.normalize(torch.einsum("blp,bpd->bld", s / s.sum(-1, keepdim=True), patches), dim=-1)
    u = F.normalize(tokens, dim=-1)
    z = torch.einsum("bjd,bkd->bjk", c, u) / TEMPERATURE
    z = z.masked_fill(~(mask[:, None, :] & mask[:, :, None]), -1e9)
    ce = -(z.log_softmax(1) + z.log_softmax(2)).diagonal(dim1=1, dim2=2)
    ce = torch.where(mask, ce, 0.0)
    return (ce.sum(1) / mask.sum(1).clamp(min=1)).mean() / 2
