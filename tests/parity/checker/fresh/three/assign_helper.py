import torch
import torch.nn.functional as F


def assign(s):
    """Sparse assignment; differentiable through its softmax relaxation."""
    soft = s.softmax(-1)
    with torch.no_grad():
        lo, hi = s.aminmax(dim=-1, keepdim=True)
        hard = (s - lo) / (hi - lo)
        hard[hard < 1 / s.shape[-1]] = 0
        hard = hard / hard.sum(-1, keepdim=True)
    return hard + soft - soft.detach()


def loss_fn(batch, scale):
    """batch: (v (B,P,D), t (B,L,D), mask (B,L) int); scale 1/tau"""
    v, t, mask = batch
    mask = mask.bool()
    c = F.normalize(assign(t @ v.mT) @ v, dim=-1)
    z = scale * c @ F.normalize(t, dim=-1).mT
    a = z.masked_fill(~mask[:, None], -1e9).log_softmax(-1)
    b = z.mT.masked_fill(~mask[:, None], -1e9).log_softmax(-1)
    nll = -0.5 * torch.diagonal(a + b, dim1=1, dim2=2).masked_fill(~mask, 0)
    return torch.mean(nll.sum(1) / mask.sum(1).clamp(min=1))
