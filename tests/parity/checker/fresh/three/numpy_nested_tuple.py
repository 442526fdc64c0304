import numpy as np


def xent(z):
    e = np.exp(z - z.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    d = np.arange(len(z))
    loss = -np.log(p[d, d]).mean()
    p[d, d] -= 1
    return loss, p / len(z)


def fine_value_and_grads(v, t, mask, log_scale):
    """v (B,P,D), t (B,L,D), mask (B,L) bool, log_scale log(1/tau) -> loss, (dv, dt, dlog_scale)"""
    k, loss, dk = np.exp(log_scale), 0.0, 0.0
    dv, dt = np.zeros(v.shape), np.zeros(t.shape)
    for b, m in enumerate(mask):
        x, w = v[b], t[b][m]
        if not len(w):
            continue
        s = w @ x.T
        u = s - s.min(1, keepdims=True)
        u = u * (u >= u.max(1, keepdims=True) / len(x))
        c = u @ x
        nc, nw = np.linalg.norm(c, axis=1, keepdims=True), np.linalg.norm(w, axis=1, keepdims=True)
        c, wn = c / nc, w / nw
        cos = c @ wn.T
        l1, g1 = xent(k * cos)
        l2, g2 = xent(k * cos.T)
        loss += (l1 + l2) / (2 * len(v))
        g = (g1 + g2) / (2 * len(v))
        dk += (g * cos).sum() * k
        gc, gw = k * g @ wn, k * g.T @ c
        gc = (gc - c * (gc * c).sum(1, keepdims=True)) / nc
        gw = (gw - wn * (gw * wn).sum(1, keepdims=True)) / nw
        gs = (gc @ x.T) * (u > 0)
        gs[np.arange(len(w)), s.argmin(1)] -= gs.sum(1)
        dv[b] = u.T @ gc + gs.T @ w
        dt[b][m] = gw + gs @ x
    return loss, (dv, dt, dk)
