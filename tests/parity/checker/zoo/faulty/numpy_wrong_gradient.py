"""NumPy with a backward pass by hand that forgets the alignment: c is taken as a constant mixture."""

import numpy as np

EXPECT = {
    "target": "forward_backward",
    "verdict": "explained",
    "deviations": ["weights.detached", "reduction.token"],
    "framework": "numpy",
    "call": ["v", "t", "mask_int", "scale"],
    "returns": {"loss": "fine", "dv": "grad v", "dt": "grad t"},
}


def unit(x):
    n = np.sqrt((x * x).sum(-1, keepdims=True))
    return x / n, n


def back_unit(g, y, n):
    return (g - (g * y).sum(-1, keepdims=True) * y) / n


def forward_backward(v, t, mask, scale):
    count = max(int(mask.sum()), 1)
    loss, dv, dt = 0.0, np.zeros_like(v), np.zeros_like(t)
    for b in range(v.shape[0]):
        rows = np.flatnonzero(mask[b])
        if rows.size == 0:
            continue
        words = t[b, rows]
        s = words @ v[b].T
        lo, hi = s.min(1, keepdims=True), s.max(1, keepdims=True)
        s = np.where(hi > lo, (s - lo) / np.where(hi > lo, hi - lo, 1), 1)
        s = np.where(s >= 1 / v.shape[1], s, 0)
        a = s / s.sum(1, keepdims=True)
        c, cn = unit(a @ v[b])
        u, un = unit(words)
        z = scale * c @ u.T
        up = np.exp(z - z.max(1, keepdims=True))
        up /= up.sum(1, keepdims=True)
        down = np.exp(z - z.max(0, keepdims=True))
        down /= down.sum(0, keepdims=True)
        loss -= (np.log(np.diag(up)).sum() + np.log(np.diag(down)).sum()) / (2 * count)
        dz = (up + down - 2 * np.eye(rows.size)) / (2 * count)
        dv[b] = a.T @ back_unit(scale * dz @ u, c, cn)
        dt[b, rows] = back_unit(scale * dz.T @ c, u, un)
    return {"loss": loss, "dv": dv, "dt": dt}
