"""SPARC's fine-grained loss (eq. 6) in NumPy, gradients by hand.      sparc-ref check parity/examples/numpy_loss.py

One caption at a time, padding cut off.  Gradients come back from a closure: dpatches, dtokens, dtheta.
"""

import numpy as np


def unit(x):
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    length[length == 0] = 1
    y = x / length
    return y, lambda dy: (dy - y * (dy * y).sum(-1, keepdims=True)) / length


def log_softmax(z):
    shifted = z - z.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return log_p, lambda d: d - np.exp(log_p) * d.sum(1, keepdims=True)


def one(v, t, theta):
    """v (P,D), t (L,D) -> loss, back"""
    s = t @ v.T                                           # (L,P)
    lo, hi = s.min(1, keepdims=True), s.max(1, keepdims=True)
    flat = lo == hi
    width = np.where(flat, 1.0, hi - lo)
    s_hat = np.where(flat, 1.0, (s - lo) / width)
    keep = s_hat >= 1 / len(v)
    total = (s_hat * keep).sum(1, keepdims=True)
    a = s_hat * keep / total
    (c, back_c), (u, back_u) = unit(a @ v), unit(t)
    z = np.exp(theta) * c @ u.T                           # (L,L)
    (rows, back_rows), (columns, back_columns) = log_softmax(z), log_softmax(z.T)
    loss = -(np.diag(rows) + np.diag(columns)).mean() / 2

    def back(dloss):
        d = np.eye(len(t)) * (-dloss / (2 * len(t)))
        dz = back_rows(d) + back_columns(d).T
        dgrouped = back_c(np.exp(theta) * dz @ u)
        dt = back_u(np.exp(theta) * dz.T @ c)
        da = dgrouped @ v.T
        dh = np.where(flat, 0.0, keep * (da - (da * a).sum(1, keepdims=True)) / total / width)
        at_lo, at_hi = (s == x for x in (lo, hi))
        ds = dh + at_lo * ((dh * (s_hat - 1)).sum(1, keepdims=True) / at_lo.sum(1, keepdims=True))
        ds = ds - at_hi * ((dh * s_hat).sum(1, keepdims=True) / at_hi.sum(1, keepdims=True))
        return ds.T @ t + a.T @ dgrouped, dt + ds @ v, (dz * z).sum()

    return loss, back


def sparc_loss(patches, tokens, lengths, theta):
    """patches (B,P,D), tokens (B,L,D), lengths (B,), theta = log(1/tau) -> loss, back"""
    parts = [one(v, t[:n], theta) if n else None for v, t, n in zip(patches, tokens, lengths)]

    def back(dloss=1.0):
        dv, dt, dtheta = np.zeros_like(patches), np.zeros_like(tokens), 0.0
        for i, part in enumerate(parts):
            if part is not None:
                dv[i], dt[i, : lengths[i]], d = part[1](dloss / len(parts))
                dtheta += d
        return dv, dt, dtheta

    return sum(part[0] for part in parts if part is not None) / len(parts), back
