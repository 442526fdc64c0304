import numpy as np


def _lse(z, axis):
    top = z.max(axis, keepdims=True)
    return top + np.log(np.exp(z - top).sum(axis, keepdims=True))


def loss_and_grads(v, t, mask, theta):
    dv, dt, dtheta, total = np.zeros_like(v), np.zeros_like(t), 0.0, 0.0
    e, batch = np.exp(theta), len(v)
    for i in range(batch):
        rows = np.flatnonzero(mask[i])
        n = len(rows)
        if n == 0:
            continue
        x, y = v[i], t[i][rows]
        s = y @ x.T
        low, high = s.min(1, keepdims=True), s.max(1, keepdims=True)
        keep = (s - low) / (high - low) >= 1 / len(x)
        u = keep * (s - low)                       # range and row sum cancel in the norm below
        c = u @ x
        cn, yn = np.linalg.norm(c, axis=1, keepdims=True), np.linalg.norm(y, axis=1, keepdims=True)
        ch, yh = c / cn, y / yn
        cos = ch @ yh.T
        z = e * cos
        total += (_lse(z, 1).sum() + _lse(z, 0).sum() - 2 * np.trace(z)) / (2 * n * batch)

        dz = (np.exp(z - _lse(z, 1)) + np.exp(z - _lse(z, 0)) - 2 * np.eye(n)) / (2 * n * batch)
        dtheta += (dz * z).sum()
        dch, dyh = e * dz @ yh, e * dz.T @ ch
        dc = (dch - ch * (ch * dch).sum(1, keepdims=True)) / cn
        dy = (dyh - yh * (yh * dyh).sum(1, keepdims=True)) / yn
        ds = (dc @ x.T) * keep
        ds[np.arange(n), s.argmin(1)] -= ds.sum(1)
        dv[i] += u.T @ dc + ds.T @ y
        dt[i][rows] = 0
        dt[i, rows] = dy + ds @ x
    return total, dv, dt, dtheta
