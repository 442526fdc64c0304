"""SPARC eq. 6 in NumPy with its gradients written by hand."""
import numpy as np


def _unit(x):
    n = np.sqrt((x * x).sum(-1, keepdims=True))
    n = np.where(n == 0, 1.0, n)
    return x / n, n


def _unit_back(dy, y, n):
    return (dy - y * (dy * y).sum(-1, keepdims=True)) / n


def _ce(z):
    """z (n,n) -> per-row loss, softmax"""
    e = np.exp(z - z.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    return -np.log(np.diagonal(p)), p


def loss_and_grads(v, t, mask, theta):
    """v (B,P,D), t (B,L,D), mask (B,L) bool true = real, theta = log(1/tau) -> loss, {"v": , "t": , "theta": }"""
    B, P, _ = v.shape
    dv, dt, dtheta, loss = np.zeros_like(v), np.zeros_like(t), 0.0, 0.0
    k = np.exp(theta)
    for i in range(B):
        idx = np.flatnonzero(mask[i])
        n = len(idx)
        if n == 0:
            continue
        ti, vi = t[i, idx], v[i]
        s = ti @ vi.T
        jmin, jmax = s.argmin(1), s.argmax(1)
        rows = np.arange(n)
        lo, span = s[rows, jmin][:, None], (s[rows, jmax] - s[rows, jmin])[:, None]
        flat = span == 0
        h = np.where(flat, 1.0, (s - lo) / np.where(flat, 1.0, span))
        keep = h >= 1.0 / P
        w = h * keep
        total = w.sum(1, keepdims=True)
        a = w / total
        c = a @ vi
        cu, cn = _unit(c)
        tu, tn = _unit(ti)
        cosine = cu @ tu.T
        l1, p1 = _ce(k * cosine)
        l2, p2 = _ce(k * cosine.T)
        loss += (l1.sum() + l2.sum()) / (2 * n * B)

        eye = np.eye(n)
        dz = ((p1 - eye) + (p2 - eye).T) / (2 * n * B)
        dtheta += k * (dz * cosine).sum()
        dcu, dtu = k * dz @ tu, k * dz.T @ cu
        dc = _unit_back(dcu, cu, cn)
        dti = _unit_back(dtu, tu, tn)
        da = dc @ vi.T
        dvi = a.T @ dc
        dw = (da - (da * a).sum(1, keepdims=True)) / total
        dh = dw * keep
        ds = dh / np.where(flat, 1.0, span)
        dspan = -(dh * h).sum(1) / np.where(flat, 1.0, span)[:, 0]
        dlo = -ds.sum(1)
        ds[rows, jmax] += dspan
        ds[rows, jmin] += dlo - dspan
        ds = np.where(flat, 0.0, ds)
        dti += ds @ vi
        dvi += ds.T @ ti
        dv[i] += dvi
        dt[i, idx] += dti
    return loss, {"v": dv, "t": dt, "theta": dtheta}
