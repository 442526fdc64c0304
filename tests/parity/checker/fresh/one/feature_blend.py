import torch
import torch.nn.functional as F


def ema_like(x, momentum=0.5):
    """Blend of the live features and the stored ones."""
    return momentum * x + (1 - momentum) * x.detach()


def sparc_finegrained(image_tokens, text_tokens, text_mask, scale):
    """image_tokens (B,P,D), text_tokens (B,L,D), text_mask (B,L) bool, scale = 1/tau"""
    image_tokens = ema_like(image_tokens)
    s = text_tokens @ image_tokens.mT
    lo = s.amin(-1, keepdim=True)
    hi = s.amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo)
    s = torch.where(s >= 1.0 / s.shape[-1], s, torch.zeros_like(s))
    a = s / s.sum(-1, keepdim=True)
    c = F.normalize(a @ image_tokens, dim=-1)
    z = scale * c @ F.normalize(text_tokens, dim=-1).mT
    m = text_mask[:, None, :]
    l1 = torch.where(m, z, -torch.inf).logsumexp(-1)
    l2 = torch.where(m, z.mT, -torch.inf).logsumexp(-1)
    per_token = 0.5 * (l1 + l2) - z.diagonal(dim1=1, dim2=2)
    per_token = torch.where(text_mask, per_token, 0.0)
    return (per_token.sum(1) / text_mask.sum(1)).mean()
