"""Masks live in log space and are added; finite, so that fully padded rows stay finite."""

import torch

EXPECT = {
    "target": "sparse_alignment_loss",
    "verdict": "eq6",
    "call": ["image_embeds=v", "text_embeds=t", "attention_mask=mask_int", "logit_scale=scale"],
}


def unit(x, eps=1e-12):
    return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True).clamp_min(eps**2))


def sparse_alignment_loss(image_embeds, text_embeds, attention_mask, logit_scale):
    mask = attention_mask.to(text_embeds.dtype)
    additive = (1.0 - mask) * (torch.finfo(text_embeds.dtype).min / 8)

    scores = text_embeds.matmul(image_embeds.mT)
    lo, hi = scores.amin(-1, True), scores.amax(-1, True)
    spread = torch.where(hi == lo, torch.inf, hi - lo)
    scores = (scores - lo) / spread + (hi == lo)
    scores = scores * scores.ge(1 / scores.size(-1)).to(scores.dtype)
    context = (scores / scores.sum(-1, keepdim=True)).matmul(image_embeds)

    logits = logit_scale * unit(context).matmul(unit(text_embeds).mT)
    i2t = (logits + additive[:, None, :]).log_softmax(-1)
    t2i = (logits.mT + additive[:, None, :]).log_softmax(-1)
    nll = -(i2t + t2i).diagonal(dim1=-2, dim2=-1) / 2
    return ((nll * mask).sum(-1) / mask.sum(-1).clamp(min=1)).mean()
