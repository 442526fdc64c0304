"""> where the paper has >=."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "loss_fn",
    "verdict": "eq6",
    "edges": ["threshold.strict"],
    "call": ["v", "t", "mask", "scale"],
}


def loss_fn(v, t, mask, scale):
    s = torch.einsum("bld,bpd->blp", t, v)
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = hi == lo
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s = torch.where(s > 1 / v.size(1), s, 0.0)
    c = torch.einsum("blp,bpd->bld", s / s.sum(-1, keepdim=True), v)
    z = scale * torch.einsum("bjd,bkd->bjk", F.normalize(c, dim=-1), F.normalize(t, dim=-1))
    floor = torch.finfo(z.dtype).min
    a = z.masked_fill(~mask[:, None, :], floor).log_softmax(2)
    b = z.masked_fill(~mask[:, :, None], floor).log_softmax(1)
    ce = -(a + b).diagonal(dim1=1, dim2=2).masked_fill(~mask, 0) / 2
    return (ce.sum(1) / mask.sum(1).clamp(min=1)).mean()
