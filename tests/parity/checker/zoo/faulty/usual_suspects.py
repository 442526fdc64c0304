"""Everything normalised at the top of the function, as CLIP does: cosine, unit patches averaged, and 0/0 on flat rows."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "fine_grained_loss",
    "verdict": "conditional",
    "deviations": ["similarity.cosine", "grouping.normalised_patches", "minmax.nan_on_flat"],
    "also": ["edge.zero_padding"],
    "harmless": ["similarity.tokens_normalised"],
    "conditions": ["no flat rows", "unit-norm patches"],
    "call": ["image_tokens=v", "text_tokens=t", "text_mask=mask", "logit_scale=scale"],
}


def fine_grained_loss(image_tokens, text_tokens, text_mask, logit_scale):
    image_tokens = F.normalize(image_tokens, dim=-1)
    text_tokens = F.normalize(text_tokens, dim=-1)
    sim = torch.einsum("btd,bpd->btp", text_tokens, image_tokens)
    mn, mx = sim.amin(-1, keepdim=True), sim.amax(-1, keepdim=True)
    sim = (sim - mn) / (mx - mn)
    sim = sim.masked_fill(sim < 1 / sim.shape[-1], 0)
    weights = sim / sim.sum(-1, keepdim=True)
    grouped = F.normalize(torch.einsum("btp,bpd->btd", weights, image_tokens), dim=-1)
    logits = logit_scale * torch.einsum("bnd,bmd->bnm", grouped, text_tokens)
    hidden = ~text_mask[:, None, :]
    low = torch.finfo(logits.dtype).min
    ce = -logits.masked_fill(hidden, low).log_softmax(-1).diagonal(dim1=1, dim2=2)
    ce = ce - logits.mT.masked_fill(hidden, low).log_softmax(-1).diagonal(dim1=1, dim2=2)
    ce = torch.where(text_mask, ce, 0.0)
    return (ce.sum(1) / text_mask.sum(1).clamp(min=1)).mean() / 2
