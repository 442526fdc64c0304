"""Listing 1, on the list of real tokens only."""
import torch


def token_losses(image, text, word_ids, theta):
    """word_ids: (B,L) ints, 0 = padding"""
    real = word_ids != 0
    sample, place = real.nonzero(as_tuple=True)
    q = text[sample, place]                                   # (N,D), every real token of the batch
    s = torch.einsum("nd,npd->np", q, image[sample])
    s = s - s.amin(-1, keepdim=True)
    s = s * (s >= s.amax(-1, keepdim=True) / image.shape[1])
    c = torch.einsum("np,npd->nd", s, image[sample])
    c, q = torch.nn.functional.normalize(c), torch.nn.functional.normalize(q)
    z = theta.exp() * c @ q.T
    same = sample[:, None] == sample[None]
    z = torch.where(same, z, -torch.inf)
    return torch.logsumexp(z, 0) - z.diagonal(), torch.logsumexp(z, 1) - z.diagonal()


def loss(image, text, word_ids, theta):
    a, b = token_losses(image, text, word_ids, theta)
    return (a.mean() + b.mean()) / 2
