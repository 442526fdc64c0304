import torch
import torch.nn.functional as F


def local_loss(text_tokens, image_tokens, logit_scale, padding_mask=None, sigma=0.3, eps=1e-8):
    """text_tokens (B,L,D), image_tokens (B,P,D); padding_mask (B,L) True = padding; logit_scale log(1/tau)."""
    B, L, _ = text_tokens.shape
    real = torch.ones(B, L, dtype=torch.bool) if padding_mask is None else ~padding_mask
    sim = text_tokens @ image_tokens.mT
    lo, hi = sim.amin(-1, keepdim=True), sim.amax(-1, keepdim=True)
    sim = (sim - lo) / (hi - lo + eps)
    sim = torch.where(sim < sigma, torch.zeros((), dtype=sim.dtype), sim)
    sim = sim / (sim.sum(-1, keepdim=True) + eps)
    c = F.normalize(sim @ image_tokens, dim=-1)
    t = F.normalize(text_tokens, dim=-1)
    logits = logit_scale.exp() * torch.bmm(c, t.transpose(1, 2))
    columns = real[:, None, :]
    i2t = logits.masked_fill(~columns, -torch.inf).log_softmax(-1)
    t2i = logits.transpose(1, 2).masked_fill(~columns, -torch.inf).log_softmax(-1)
    diag = i2t.diagonal(dim1=1, dim2=2) + t2i.diagonal(dim1=1, dim2=2)
    diag = diag.masked_fill(~real, 0.0)
    return (-0.5 * diag.sum(-1) / real.sum(-1).clamp(min=1)).mean()
