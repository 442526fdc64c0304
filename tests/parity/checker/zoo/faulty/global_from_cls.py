"""The image's global embedding is the [CLS] token."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "compute_losses",
    "verdict": "explained",
    "deviations": ["global.uses_cls"],
    "call": ["v_cls", "t", "mask_int", "theta"],
    "returns": ["global", "fine"],
}


def compute_losses(visual, textual, attention_mask, logit_scale):
    cls, patches = visual[:, 0], visual[:, 1:]
    valid = attention_mask.bool()
    scale = logit_scale.exp()
    pooled = (textual * attention_mask.unsqueeze(-1)).sum(1) / attention_mask.sum(1, keepdim=True).clamp(min=1)
    sim = scale * F.normalize(cls, dim=-1) @ F.normalize(pooled, dim=-1).t()
    gt = torch.arange(sim.size(0), device=sim.device)
    global_loss = 0.5 * (F.cross_entropy(sim, gt) + F.cross_entropy(sim.t(), gt))

    aff = textual @ patches.transpose(1, 2)
    lo, hi = aff.amin(2, keepdim=True), aff.amax(2, keepdim=True)
    aff = torch.where(hi > lo, (aff - lo) / torch.where(hi > lo, hi - lo, 1.0), 1.0)
    aff = aff * (aff >= 1 / patches.size(1))
    ctx = F.normalize(aff @ patches / aff.sum(2, keepdim=True), dim=2)
    words = F.normalize(textual, dim=2)
    sim = scale * ctx @ words.transpose(1, 2)
    low = torch.finfo(sim.dtype).min
    ce = sim.masked_fill(~valid[:, None, :], low).logsumexp(2) + sim.masked_fill(~valid[:, :, None], low).logsumexp(1)
    ce = (ce / 2 - sim.diagonal(dim1=1, dim2=2)).masked_fill(~valid, 0)
    return global_loss, (ce.sum(1) / valid.sum(1).clamp(min=1)).mean()
