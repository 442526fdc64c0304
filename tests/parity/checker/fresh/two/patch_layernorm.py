import torch
import torch.nn.functional as F


def sparc_local(image_feats, text_feats, text_mask, logit_scale):
    """Fine-grained SPARC loss."""
    b, p, d = image_feats.shape
    sim = torch.einsum("bld,bpd->blp", text_feats, F.layer_norm(image_feats, (d,)))
    lo = sim.amin(dim=-1, keepdim=True)
    hi = sim.amax(dim=-1, keepdim=True)
    sim = (sim - lo) / (hi - lo).clamp_min(1e-12)
    sim = torch.where(sim >= 1.0 / p, sim, torch.zeros_like(sim))
    w = sim / sim.sum(-1, keepdim=True).clamp_min(1e-12)
    grouped = torch.einsum("blp,bpd->bld", w, image_feats)
    c = F.normalize(grouped, dim=-1)
    t = F.normalize(text_feats, dim=-1)
    logits = logit_scale * c @ t.transpose(1, 2)
    pad = ~text_mask
    eye = torch.arange(text_feats.size(1)).expand(b, -1)
    eye = eye.masked_fill(pad, -100)
    total = 0
    for z in (logits, logits.transpose(1, 2)):
        z = z.masked_fill(pad[:, None, :], torch.finfo(z.dtype).min)
        ce = F.cross_entropy(z.transpose(1, 2), eye, reduction="none", ignore_index=-100)
        total = total + (ce.sum(1) / text_mask.sum(1).clamp_min(1)).mean()
    return total / 2
