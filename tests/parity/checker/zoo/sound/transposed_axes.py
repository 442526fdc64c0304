"""F.cross_entropy takes classes on axis 1: here that is the other token axis, which swaps the two directions."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "local_contrastive",
    "verdict": "eq6",
    "harmless": ["logits.directions_swapped"],
    "call": ["v", "t", "mask", "scale"],
    "returns": ["tv", "vt"],
}


def local_contrastive(v, t, mask, scale):
    """Returns (loss_v2t, loss_t2v), so the caller believes."""
    batch, length = mask.shape
    s = torch.einsum("bld,bpd->blp", t, v)
    lo = s.amin(-1, keepdim=True)
    hi = s.amax(-1, keepdim=True)
    span = torch.where(hi > lo, hi - lo, 1.0)
    w = torch.where(hi > lo, (s - lo) / span, 1.0)
    w = torch.where(w >= 1 / v.shape[1], w, 0.0)
    c = F.normalize(torch.einsum("blp,bpd->bld", w / w.sum(-1, keepdim=True), v), dim=-1)
    t = F.normalize(t, dim=-1)
    logits = scale * torch.einsum("bjd,bkd->bjk", c, t)
    floor = torch.finfo(logits.dtype).min
    labels = torch.arange(length, device=v.device).repeat(batch, 1)
    v2t = F.cross_entropy(logits.masked_fill(~mask[:, :, None], floor), labels, reduction="none")
    t2v = F.cross_entropy(logits.transpose(1, 2).masked_fill(~mask[:, :, None], floor), labels, reduction="none")
    n = mask.sum(1).clamp(min=1)
    v2t = (v2t.masked_fill(~mask, 0).sum(1) / n).mean()
    t2v = (t2v.masked_fill(~mask, 0).sum(1) / n).mean()
    return v2t, t2v
