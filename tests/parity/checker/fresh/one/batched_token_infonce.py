import torch
import torch.nn.functional as F


def batched_token_infonce(patches, tokens, mask, scale):
    """InfoNCE between grouped patches and tokens. patches (B,P,D), tokens (B,L,D), mask (B,L) bool, scale 1/tau"""
    s = tokens @ patches.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo)
    s = torch.where(s >= 1 / patches.shape[1], s, torch.zeros_like(s))
    c = (s / s.sum(-1, keepdim=True)) @ patches
    c, t = F.normalize(c[mask], dim=-1), F.normalize(tokens[mask], dim=-1)     # (N,D) real tokens of the batch
    z = scale * c @ t.T
    y = torch.arange(len(z), device=z.device)
    w = (1.0 / mask.sum(1).to(z)).repeat_interleave(mask.sum(1)) / len(mask)
    ce = F.cross_entropy(z, y, reduction="none") + F.cross_entropy(z.T, y, reduction="none")
    return (w * ce).sum() / 2
