"""y, back = op(x) all the way down."""
import numpy as np


def unit(x):
    n = np.sqrt(np.sum(x * x, -1, keepdims=True))
    y = x / n
    return y, lambda g: (g - y * np.sum(g * y, -1, keepdims=True)) / n


def nce(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)
    i = np.arange(len(z))
    return -np.log(p[i, i]).mean(), lambda g: g * (p - np.eye(len(z))) / len(z)


def group(t, v):
    s = t @ v.T
    i, lo, hi = np.arange(len(s)), s.argmin(1), s.argmax(1)
    up = s - s[i, lo][:, None]
    w = np.where(up * len(v) >= up[i, hi][:, None], up, 0.0)     # eqs. 2-4 up to a factor per row
    c = w @ v

    def back(g):
        d = np.where(w > 0, g @ v.T, 0.0)
        d[i, lo] -= d.sum(1)
        return d @ v, w.T @ g + d.T @ t

    return c, back


def pair(v, t, theta):
    c, group_back = group(t, v)
    x, x_back = unit(c)
    y, y_back = unit(t)
    k, r = np.exp(theta), x @ y.T
    a, a_back = nce(k * r)
    b, b_back = nce(k * r.T)

    def back(g):
        d = a_back(g / 2) + b_back(g / 2).T
        dt, dv = group_back(x_back(k * d @ y))
        return dv, dt + y_back(k * d.T @ x), k * np.sum(d * r)

    return (a + b) / 2, back


def fine_loss(v, t, lengths, theta):
    """v (B,P,D), t (B,L,D), lengths (B,), theta = log(1/tau) -> loss, back; back(g) -> dv, dt, dtheta"""
    parts = [pair(v[i], t[i, :n], theta) if n else (0.0, None) for i, n in enumerate(lengths)]

    def back(g=1.0):
        dv, dt, dtheta = np.zeros_like(v), np.zeros_like(t), 0.0
        for i, (n, (_, b)) in enumerate(zip(lengths, parts)):
            if n:
                dv[i], dt[i, :n], d = b(g / len(v))
                dtheta += d
        return dv, dt, dtheta

    return sum(p for p, _ in parts) / len(v), back
