"""Checks exported activations with NumPy only."""
import numpy as np


def normed(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def logsumexp(z):
    m = z.max(axis=-1, keepdims=True)
    return (m + np.log(np.exp(z - m).sum(axis=-1, keepdims=True)))[..., 0]


def cam(word, patches):
    """activation map of one word, scaled by its peak"""
    a = patches @ word
    a = a / np.abs(a).max()
    a = np.where(a >= 1 / len(a), a, 0.0)
    total = a.sum()
    return a / total if total > 0 else a


def cam_loss(patches, words, lengths, log_scale):
    """patches (P, B, D), words (L, B, D) time major, lengths (B,)"""
    scale, losses = np.exp(log_scale), []
    for b, n in enumerate(lengths):
        v, t = patches[:, b], words[:n, b]
        c = np.stack([cam(w, v) @ v for w in t])
        norms = np.linalg.norm(c, axis=-1, keepdims=True)
        c = c / np.where(norms > 0, norms, 1.0)
        z = scale * c @ normed(t).T
        nll = logsumexp(z) / 2 + logsumexp(z.T) / 2 - np.diag(z)
        losses.append(nll.mean())
    return np.mean(losses)
