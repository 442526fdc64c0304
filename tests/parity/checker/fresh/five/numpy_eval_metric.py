"""Validation value of the local loss, no torch on the eval box."""
import numpy as np


def local_loss(words, n_words, regions, tau):
    """words (B,L,D) right padded, n_words list of B ints, regions (B,P,D), tau float"""
    words, regions = np.asarray(words), np.asarray(regions)
    valid = np.arange(words.shape[1]) < np.asarray(n_words)[:, None]
    s = np.matmul(words, regions.swapaxes(1, 2))
    s -= s.min(-1, keepdims=True)
    s /= s.max(-1, keepdims=True)
    s[s < 1 / regions.shape[1]] = 0
    c = s @ regions
    c = c / np.sqrt(np.square(c).sum(-1, keepdims=True))
    w = words / np.sqrt(np.square(words).sum(-1, keepdims=True))
    z = c @ w.swapaxes(1, 2) / tau

    def nll(z):
        top = np.where(valid[:, None], z, -np.inf).max(-1, keepdims=True)
        total = (np.exp(z - top) * valid[:, None]).sum(-1)
        return np.log(total) + top[..., 0] - z.diagonal(axis1=1, axis2=2)

    nll = (nll(z) + nll(z.swapaxes(1, 2))) / 2
    return float(((nll * valid).sum(1) / valid.sum(1)).mean())
