"""SPARC's fine-grained loss (eq. 6) in torch.      sparc-ref check parity/examples/torch_loss.py"""

import torch
import torch.nn.functional as F


def sparc_loss(patches, tokens, mask, scale):
    """patches (B,P,D), tokens (B,L,D), mask (B,L) true = real token, scale = 1/tau -> ()"""
    s = tokens @ patches.mT                               # (B,L,P)
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = hi == lo                                       # every patch alike: equal weights
    s_hat = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s_til = torch.where(s_hat >= 1 / patches.shape[1], s_hat, 0.0)
    c = (s_til / s_til.sum(-1, keepdim=True)) @ patches   # (B,L,D)
    t = torch.where(mask[..., None], tokens, 1.0)         # padding may hold zeros, which have no direction
    z = scale * F.normalize(c, dim=-1) @ F.normalize(t, dim=-1).mT
    shut = torch.finfo(z.dtype).min
    groups = z.masked_fill(~mask[:, None, :], shut).log_softmax(-1).diagonal(dim1=1, dim2=2)
    words = z.mT.masked_fill(~mask[:, None, :], shut).log_softmax(-1).diagonal(dim1=1, dim2=2)
    each = torch.where(mask, groups + words, 0.0).sum(1) / mask.sum(1).clamp_min(1)
    return -each.mean() / 2
