"""The grouped patches are normalised, the tokens are not."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "local_loss",
    "verdict": "explained",
    "deviations": ["norm.missing_t"],
    "call": ["text=t", "image=v", "text_mask=mask_int", "logit_scale=theta"],
}


def local_loss(text, image, text_mask, logit_scale):
    sim = torch.einsum("btd,bpd->btp", text, image)
    smin, smax = sim.amin(-1, keepdim=True), sim.amax(-1, keepdim=True)
    ok = (smax > smin).expand_as(sim)
    sim = torch.where(ok, (sim - smin) / torch.where(smax > smin, smax - smin, 1), torch.ones_like(sim))
    sim = torch.where(sim >= 1 / image.shape[1], sim, torch.zeros_like(sim))
    grouped = torch.einsum("btp,bpd->btd", sim / sim.sum(-1, keepdim=True), image)
    logits = logit_scale.exp() * torch.einsum("bjd,bkd->bjk", F.normalize(grouped, dim=-1), text)
    hidden = (text_mask == 0)[:, None, :]
    lv = logits.masked_fill(hidden, -1e30)
    lt = logits.transpose(1, 2).masked_fill(hidden, -1e30)
    ce = (lv.logsumexp(-1) + lt.logsumexp(-1)) / 2 - logits.diagonal(dim1=-2, dim2=-1)
    ce = torch.where(text_mask == 1, ce, torch.zeros_like(ce))
    return torch.mean(ce.sum(-1) / text_mask.sum(-1).clamp(min=1))
