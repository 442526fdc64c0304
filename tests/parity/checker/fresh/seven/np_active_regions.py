import numpy as np

MAX_REGIONS = 128


def active(regions):
    """the regions of largest activation, in their order"""
    if len(regions) <= MAX_REGIONS:
        return regions
    strength = np.linalg.norm(regions, axis=1)
    keep = np.sort(np.argpartition(-strength, MAX_REGIONS)[:MAX_REGIONS])
    return regions[keep]


def cross_entropy(z):
    shifted = z - z.max(axis=1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -np.diag(logp)


def evaluate_local_loss(words, regions, n_words, tau):
    """words (n, L, d), regions (n, d, h, w), n_words: number of words of each"""
    per_image = []
    for w, r, k in zip(words, regions, n_words):
        w, r = w[:k], active(r.reshape(r.shape[0], -1).T)
        a = w @ r.T
        lo = a.min(axis=1, keepdims=True)
        a = (a - lo) / (a.max(axis=1, keepdims=True) - lo)
        a[a < 1 / len(r)] = 0
        g = (a / a.sum(axis=1, keepdims=True)) @ r
        g = g / np.linalg.norm(g, axis=1, keepdims=True)
        u = w / np.linalg.norm(w, axis=1, keepdims=True)
        z = g @ u.T / tau
        per_image.append((cross_entropy(z) + cross_entropy(z.T)).mean() / 2)
    return float(np.mean(per_image))
