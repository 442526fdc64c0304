import numpy as np


def unit(x):
    n = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / n, n


def unit_vjp(g, y, n):
    return (g - y * np.sum(g * y, -1, keepdims=True)) / n


def value_and_grad(params, mask):
    """params: dict v (B,P,D), t (B,L,D), log_scale (). mask (B,L) bool. Returns loss and a dict of the same keys."""
    v, t, log_scale = params["v"], params["t"], params["log_scale"]
    scale = np.exp(log_scale)
    grads = {"v": np.zeros_like(v), "t": np.zeros_like(t), "log_scale": 0.0}
    loss, B = 0.0, len(v)
    for b in range(B):
        real = mask[b]
        tb, vb, n = t[b][real], v[b], int(real.sum())
        s = tb @ vb.T
        m = s.min(1, keepdims=True)
        span = s.max(1, keepdims=True) - m
        keep = (s - m) / span >= 1 / len(vb)
        w = (s - m) * keep                       # range and sum cancel in the norm
        c = w @ vb
        x, cn = unit(c)
        y, tn = unit(tb)
        cosine = x @ y.T
        z = scale * cosine
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        q = np.exp(z - z.max(0, keepdims=True))
        q /= q.sum(0, keepdims=True)
        loss -= np.log(p.diagonal() * q.diagonal()).sum() / (2 * n * B)
        g = (p + q - 2 * np.eye(n)) / (2 * n * B)
        grads["log_scale"] += np.sum(g * cosine)
        gc = unit_vjp(scale * g @ y, x, cn)
        gt = unit_vjp(scale * g.T @ x, y, tn)
        gs = keep * (gc @ vb.T)
        gs[np.arange(n), s.argmin(1)] -= gs.sum(1)
        grads["v"][b] = w.T @ gc + gs.T @ tb
        grads["t"][b][real] = gt + gs @ vb
    return loss, grads
