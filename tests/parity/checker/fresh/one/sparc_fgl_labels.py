import torch
import torch.nn.functional as F


def sparc_fgl(image_emb, text_emb, attention_mask, logit_scale):
    """image_emb (B,P,D), text_emb (B,L,D), attention_mask (B,L) from the tokenizer, logit_scale = 1/tau."""
    B, L, D = text_emb.shape
    sim = torch.einsum("bld,bpd->blp", text_emb, image_emb)
    lo, hi = sim.amin(-1, keepdim=True), sim.amax(-1, keepdim=True)
    sim = (sim - lo) / (hi - lo + 1e-8)
    sim = torch.where(sim >= 1 / image_emb.shape[1], sim, 0.0)
    w = sim / sim.sum(-1, keepdim=True).clamp(min=1e-8)
    c = F.normalize(torch.einsum("blp,bpd->bld", w, image_emb), dim=-1)
    t = F.normalize(text_emb, dim=-1)
    logits = logit_scale * torch.einsum("bld,bmd->blm", c, t)
    labels = torch.arange(L, device=logits.device).expand(B, L)
    ce_v = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    ce_t = F.cross_entropy(logits, labels, reduction="none")
    ce = 0.5 * (ce_v + ce_t) * attention_mask
    return (ce.sum(1) / attention_mask.sum(1).clamp(min=1)).mean()
