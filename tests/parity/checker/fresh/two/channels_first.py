import torch
import torch.nn.functional as F


def loss(image, text, text_mask, log_scale):
    """image (B, D, P) and text (B, D, L) as they come out of 1x1 convolutions."""
    n_patches = image.shape[-1]
    sim = torch.einsum("bdl,bdp->blp", text, image)
    lo = sim.amin(-1, keepdim=True)
    sim = (sim - lo) / (sim.amax(-1, keepdim=True) - lo).clamp_min(1e-12)
    sim = torch.where(sim >= 1 / n_patches, sim, 0.0)
    att = sim / sim.sum(-1, keepdim=True).clamp_min(1e-12)
    ctx = F.normalize(torch.einsum("blp,bdp->bdl", att, image), dim=1)
    txt = F.normalize(text, dim=1)
    logits = log_scale.exp() * torch.einsum("bdj,bdk->bjk", ctx, txt)
    labels = torch.arange(logits.shape[-1]).expand(len(logits), -1)
    per_sample = 0
    for z in (logits, logits.transpose(1, 2)):
        z = z.masked_fill(~text_mask[:, None], -1e30)
        ce = F.cross_entropy(z.transpose(1, 2), labels, reduction="none") * text_mask
        per_sample = per_sample + ce.sum(1) / text_mask.sum(1).clamp_min(1)
    return per_sample.mean() / 2
