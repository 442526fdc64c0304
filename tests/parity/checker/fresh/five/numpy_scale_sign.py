"""Eq. 6 with its gradient by hand, NumPy only, one sample at a time."""
import numpy as np


def _softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def _back_unit(x, y, n, dy):
    return (dy - y * (y * dy).sum(1, keepdims=True)) / n


def value_and_grad(v, t, mask, log_inv_tau):
    """-> loss, dv, dt, dlog_inv_tau"""
    loss, dv, dt, dtheta = 0.0, np.zeros_like(v), np.zeros_like(t), 0.0
    B, k = len(v), np.exp(log_inv_tau)
    for i in range(B):
        x, q = v[i], t[i][mask[i]]
        n = len(q)
        s = q @ x.T
        r = np.arange(n)
        at = s.argmin(1)
        w = s - s[r, at][:, None]
        keep = w >= w.max(1, keepdims=True) / len(x)
        w = w * keep
        g = w @ x
        gn, qn = np.linalg.norm(g, axis=1, keepdims=True), np.linalg.norm(q, axis=1, keepdims=True)
        c, u = g / gn, q / qn
        cos = c @ u.T
        z = k * cos
        a, b = _softmax(z), _softmax(z.T)
        loss += -(np.log(a[r, r]) + np.log(b[r, r])).mean() / 2
        dz = (a - np.eye(n) + (b - np.eye(n)).T) / (2 * n * B)
        dtheta -= (dz * z).sum()
        dcos = k * dz
        dg = _back_unit(g, c, gn, dcos @ u)
        dq = _back_unit(q, u, qn, dcos.T @ c)
        ds = (dg @ x.T) * keep
        ds[r, at] -= ds.sum(1)
        dv[i] = w.T @ dg + ds.T @ q
        dt[i][mask[i]] = dq + ds @ x
    return loss / B, dv, dt, dtheta
