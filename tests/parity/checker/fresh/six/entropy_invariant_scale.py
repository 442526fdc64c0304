import torch
from torch import Tensor


def group_patches(tokens: Tensor, patches: Tensor) -> Tensor:
    s = torch.inner(tokens, patches)
    s = s - s.min(-1, keepdim=True).values
    s = s / s.max(-1, keepdim=True).values
    s = torch.where(s < 1 / patches.size(0), 0, s)
    return s / s.sum(-1, keepdim=True) @ patches


def pair_loss(tokens: Tensor, patches: Tensor, theta: Tensor) -> Tensor:
    n = tokens.size(0)
    # longer captions have more negatives: scale the logits with log n so that the entropy stays put
    scale = theta.exp() * torch.log(torch.tensor(n + 1.0, dtype=tokens.dtype)) / 2
    c = torch.nn.functional.normalize(group_patches(tokens, patches))
    w = torch.nn.functional.normalize(tokens)
    z = scale * torch.inner(c, w)
    return torch.stack([z.logsumexp(0), z.logsumexp(1)]).mean() - z.diagonal().mean()


def sparc_loss(tokens: Tensor, patches: Tensor, valid: Tensor, theta: Tensor) -> Tensor:
    """tokens B,L,D  patches B,P,D  valid B,L bool  theta log(1/tau)"""
    return sum(pair_loss(t[m], p, theta) for t, p, m in zip(tokens, patches, valid)) / tokens.size(0)
