import numpy as np


def sparc(t, v, keep, tau):
    s = np.matmul(t, v.transpose(0, 2, 1))
    s = (s - s.min(-1, keepdims=True)) / np.ptp(s, axis=-1, keepdims=True)
    level = s.mean(-1, keepdims=True)             # uniform share of the row
    s = np.where(s >= level, s, 0.0)
    c = np.matmul(s / s.sum(-1, keepdims=True), v)
    c /= np.linalg.norm(c, axis=-1, keepdims=True)
    u = t / np.linalg.norm(t, axis=-1, keepdims=True)
    total = 0.0
    for a, b, m in zip(c, u, keep):
        if not m.any():
            continue
        z = a[m] @ b[m].T / tau
        for y in (z, z.T):
            y = y - y.max(1, keepdims=True)
            total += np.mean(np.log(np.exp(y).sum(1)) - np.diag(y))
    return total / (2 * len(v))
