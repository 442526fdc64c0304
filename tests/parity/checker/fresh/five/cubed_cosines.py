import numpy as np


def fine_loss(v, t, mask, theta):
    """numpy, value only"""
    s = t @ np.swapaxes(v, 1, 2)
    s = s - s.min(-1, keepdims=True)
    s = s / s.max(-1, keepdims=True)
    s = s * (s >= 1 / v.shape[1])
    c = s @ v
    c = c / np.linalg.norm(c, axis=-1, keepdims=True)
    t = t / np.linalg.norm(t, axis=-1, keepdims=True)
    cos = c @ np.swapaxes(t, 1, 2)
    z = np.exp(theta) * cos ** 3          # sharper
    out = 0
    for y in (z, np.swapaxes(z, 1, 2)):
        e = np.exp(y - y.max()) * mask[:, None]
        out = out + np.log(e.sum(-1)) + y.max() - np.diagonal(y, axis1=1, axis2=2)
    return (np.where(mask, out, 0).sum(1) / mask.sum(1)).mean() / 2
