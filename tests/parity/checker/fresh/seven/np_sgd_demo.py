"""Trains two linear adapters on frozen features with nothing but NumPy."""
import numpy as np


def norm_fwd(x):
    n = np.sqrt((x * x).sum(-1, keepdims=True))
    return x / n, n


def norm_bwd(dy, y, n):
    return (dy - (dy * y).sum(-1, keepdims=True) * y) / n


def xent(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)
    return -np.log(np.diag(p)), p - np.eye(len(z))


def fine_loss(image, text, text_mask, scale):
    """-> loss, d_image, d_text, d_scale"""
    B, P, _ = image.shape
    d_image, d_text = np.zeros_like(image), np.zeros_like(text)
    loss = d_scale = 0.0
    for i in range(B):
        real = text_mask[i].astype(bool)
        v, t = image[i], text[i][real]
        s = t @ v.T
        lo = s.argmin(1)
        s = s - s.min(1, keepdims=True)
        keep = s >= s.max(1, keepdims=True) / P
        w = s * keep
        c, cn = norm_fwd(w @ v)
        u, un = norm_fwd(t)
        cos = c @ u.T
        l1, g1 = xent(scale * cos)
        l2, g2 = xent(scale * cos.T)
        loss += (l1 + l2).mean() / (2 * B)

        dz = (g1 + g2.T) / (2 * B * len(t))
        d_scale += (dz * cos).sum()
        dc = norm_bwd(scale * dz @ u, c, cn)
        du = norm_bwd(scale * dz.T @ c, u, un)
        ds = (dc @ v.T) * keep
        ds[np.arange(len(t)), lo] -= ds.sum(1)
        d_image[i] = w.T @ dc + ds.T @ t
        d_text[i][real] = du
    return loss, d_image, d_text, d_scale
