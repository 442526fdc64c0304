"""NumPy, gradients derived by hand; returns the loss and what to feed into the towers' backward passes."""

import numpy as np

EXPECT = {
    "target": "loss_and_grads",
    "verdict": "eq6",
    "framework": "numpy",
    "call": ["v", "t", "mask", "theta"],
    "returns": ["fine", "grad v", "grad t", "grad theta"],
}


def normalize(x):
    n = np.linalg.norm(x, axis=-1, keepdims=True)
    n = np.where(n == 0, 1.0, n)
    return x / n, n


def d_normalize(dy, y, n):
    return (dy - y * (dy * y).sum(-1, keepdims=True)) / n


def one_pair(v, t, scale):
    """Loss of one picture and its caption without padding, with gradients for v, t and log scale."""
    n, p = len(t), len(v)
    s = t @ v.T
    lo, hi = s.min(1, keepdims=True), s.max(1, keepdims=True)
    flat = lo == hi
    width = np.where(flat, 1.0, hi - lo)
    h = np.where(flat, 1.0, (s - lo) / width)
    keep = h >= 1.0 / p
    total = (h * keep).sum(1, keepdims=True)
    a = h * keep / total
    c, c_norm = normalize(a @ v)
    u, u_norm = normalize(t)
    z = scale * c @ u.T
    p1 = np.exp(z - z.max(1, keepdims=True))
    p1 /= p1.sum(1, keepdims=True)
    p2 = np.exp(z - z.max(0, keepdims=True))
    p2 /= p2.sum(0, keepdims=True)
    loss = -(np.log(np.diag(p1)) + np.log(np.diag(p2))).sum() / (2 * n)

    dz = (p1 + p2 - 2 * np.eye(n)) / (2 * n)
    dgrouped = d_normalize(scale * dz @ u, c, c_norm)
    dt = d_normalize(scale * dz.T @ c, u, u_norm)
    da = dgrouped @ v.T
    dh = keep * (da - (da * a).sum(1, keepdims=True)) / total
    dh = np.where(flat, 0.0, dh) / width
    at_lo = (s == lo) / (s == lo).sum(1, keepdims=True)
    at_hi = (s == hi) / (s == hi).sum(1, keepdims=True)
    ds = dh + at_lo * (dh * (h - 1)).sum(1, keepdims=True) - at_hi * (dh * h).sum(1, keepdims=True)
    return loss, a.T @ dgrouped + ds.T @ t, dt + ds @ v, (dz * z).sum()


def loss_and_grads(v, t, mask, log_scale):
    dv, dt = np.zeros_like(v), np.zeros_like(t)
    loss, dlog_scale = 0.0, 0.0
    for i in range(len(v)):
        real = mask[i].astype(bool)
        if not real.any():
            continue
        l, dv_i, dt_i, d = one_pair(v[i], t[i][real], np.exp(log_scale))
        loss += l / len(v)
        dlog_scale += d / len(v)
        dv[i] = dv_i / len(v)
        dt[i, real] = dt_i / len(v)
    return loss, dv, dt, dlog_scale
