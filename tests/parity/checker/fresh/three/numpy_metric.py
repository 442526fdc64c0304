import numpy as np


def sparc_fine(text, image, mask, log_scale, power=2):
    """NumPy metric. text (B,L,D), image (B,P,D), mask (B,L) 0/1, log_scale log(1/tau)"""
    losses = np.zeros(len(text))
    for i, m in enumerate(mask.astype(bool)):
        t, v = text[i][m], image[i]
        if len(t) == 0:
            continue
        s = t @ v.T
        s -= s.min(axis=1, keepdims=True)
        s /= s.max(axis=1, keepdims=True)
        s *= s >= 1 / len(v)
        s = s**power
        c = s @ v / s.sum(axis=1, keepdims=True)
        unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
        z = np.exp(log_scale) * unit(c) @ unit(t).T
        lse = lambda y: np.logaddexp.reduce(y, axis=1)
        losses[i] = np.mean(lse(z) + lse(z.T) - 2 * np.diagonal(z)) / 2
    return losses.mean(), losses
