"""Loss and gradients one pair at a time; used to check the CUDA kernel."""
import numpy as np


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def unit_backward(dy, y, n):
    return (dy - y * (y * dy).sum(1, keepdims=True)) / n


def pair(v, t, scale, threshold):
    n_tok = len(t)
    s = t @ v.T
    lo, hi = s.min(1, keepdims=True), s.max(1, keepdims=True)
    h = (s - lo) / (hi - lo)
    keep = h >= threshold
    w = (s - lo) * keep
    g = w @ v
    gn, tn = np.linalg.norm(g, axis=1, keepdims=True), np.linalg.norm(t, axis=1, keepdims=True)
    c, u = g / gn, t / tn
    cos = c @ u.T
    p, q = softmax(scale * cos), softmax(scale * cos.T)
    loss = -(np.log(np.diag(p)) + np.log(np.diag(q))).mean() / 2

    dz = (p - np.eye(n_tok) + (q - np.eye(n_tok)).T) / (2 * n_tok)
    dscale = (dz * cos).sum()
    dg = unit_backward(scale * dz @ u, c, gn)
    dt = unit_backward(scale * dz.T @ c, u, tn)
    dw = (dg @ v.T) * keep
    ds = dw.copy()
    ds[np.arange(n_tok), s.argmin(1)] -= dw.sum(1)
    return loss, w.T @ dg + ds.T @ t, dt + ds @ v, dscale


def batch_loss(patches, tokens, n_tokens, scale, threshold=0.5):
    loss, dscale = 0.0, 0.0
    dv, dt = np.zeros_like(patches), np.zeros_like(tokens)
    for i, n in enumerate(n_tokens):
        one, dv[i], dt[i, :n], ds = pair(patches[i], tokens[i, :n], scale, threshold)
        loss, dscale = loss + one, dscale + ds
    b = len(patches)
    return loss / b, (dv / b, dt / b, dscale / b)
