"""Divides by the caption's length, which may be 0."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "PerCaption",
    "verdict": "conditional",
    "deviations": ["edge.all_padding=poison"],
    "conditions": ["no caption of padding alone"],
    "call": ["v", "t", "mask_float"],
    "attributes": {"logit_scale": "theta"},
}


class PerCaption(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.zeros(()))

    def forward(self, v, t, m):
        s = torch.einsum("bld,bpd->blp", t, v)
        lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
        flat = hi == lo
        s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
        s = torch.where(s < 1.0 / v.shape[1], 0.0, s)
        c = F.normalize(torch.einsum("blp,bpd->bld", s / s.sum(-1, keepdim=True), v), dim=-1)
        z = self.logit_scale.exp() * torch.einsum("bjd,bkd->bjk", c, F.normalize(t, dim=-1))
        hide = (1 - m)[:, None, :] * 1e8
        ce = (z - hide).logsumexp(2) + (z.mT - hide).logsumexp(2) - 2 * z.diagonal(dim1=1, dim2=2)
        return ((ce * m).sum(1) / m.sum(1) / 2).mean()
