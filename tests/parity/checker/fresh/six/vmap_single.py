"""The loss is written for one pair; torch.vmap makes the batch."""
import torch


def pair_loss(patches, words, mask, theta):
    n = mask.sum()
    s = words @ patches.T
    lo, hi = s.aminmax(dim=1, keepdim=True)
    s = (s - lo) / (hi - lo)
    s = torch.where(s * patches.shape[0] >= 1, s, 0)
    c = (s / s.sum(1, keepdim=True)) @ patches
    c = c / torch.linalg.vector_norm(c, dim=1, keepdim=True)
    w = words / torch.linalg.vector_norm(words, dim=1, keepdim=True)
    z = theta.exp() * (c @ w.T)
    ninf = torch.finfo(z.dtype).min
    cols = torch.logsumexp(torch.where(mask[None, :], z, ninf), 1)
    rows = torch.logsumexp(torch.where(mask[:, None], z, ninf), 0)
    nll = cols + rows - 2 * z.diagonal()
    return torch.where(mask, nll, 0).sum() / (2 * n)


def batch_loss(patches, words, mask, theta):
    """theta = log(1/tau)"""
    return torch.vmap(pair_loss, in_dims=(0, 0, 0, None))(patches, words, mask, theta).mean()
