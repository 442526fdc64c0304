import torch
import torch.nn.functional as F

MAX_SCALE = 50.0    # 100 diverged


def local_clip(patches, tokens, n_tokens, logit_scale):
    """logit_scale is the raw parameter (a log)"""
    scale = logit_scale.exp().clamp(max=MAX_SCALE)
    losses = []
    for v, t, n in zip(patches, tokens, n_tokens):
        t = t[:n]
        a = t @ v.T
        lo = a.amin(1, keepdim=True)
        a = (a - lo) / (a.amax(1, keepdim=True) - lo)
        a = a.masked_fill(a < 1 / v.size(0), 0.)
        g = a @ v
        logits = scale * torch.cosine_similarity(g[:, None, :], t[None, :, :], dim=-1)
        idx = torch.arange(t.size(0), device=t.device)
        losses.append(F.cross_entropy(logits, idx) + F.cross_entropy(logits.T, idx))
    return torch.stack(losses).mean().div(2)
