import torch
from torch.nn.functional import normalize, cross_entropy


def rescale(s):
    mu = s.mean(-1, keepdim=True)
    sd = s.std(-1, keepdim=True, unbiased=False)
    return torch.sigmoid((s - mu) / sd)


def sparc(patches, tokens, valid, inv_tau):
    s = rescale(torch.einsum("bld,bpd->blp", tokens, patches))
    s = torch.where(s >= 1 / s.shape[-1], s, torch.zeros_like(s))
    s = s / s.sum(-1, keepdim=True)
    c = normalize(torch.einsum("blp,bpd->bld", s, patches), dim=-1)
    t = normalize(tokens, dim=-1)
    losses = []
    for ci, ti, mi in zip(c, t, valid):
        z = inv_tau * ci[mi] @ ti[mi].T
        y = torch.arange(len(z))
        losses.append(0.5 * (cross_entropy(z, y) + cross_entropy(z.T, y)) if len(z) else z.sum())
    return sum(losses) / len(losses)
