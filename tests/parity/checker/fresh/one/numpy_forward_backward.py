"""Forward and backward of the fine-grained loss in NumPy."""
import numpy as np


class FineLossNumpy:
    def forward(self, v, t, lens, theta):
        self.cache, loss = [], 0.0
        self.shapes, self.theta = (v.shape, t.shape), theta
        for vi, ti, n in zip(v, t, lens):
            ti = ti[:n]
            s = ti @ vi.T
            lo, hi = s.min(1, keepdims=True), s.max(1, keepdims=True)
            h = (s - lo) / (hi - lo)
            keep = h >= 1 / len(vi)
            total = (h * keep).sum(1, keepdims=True)
            a = h * keep / total
            c = a @ vi
            cn, tn = np.linalg.norm(c, axis=1, keepdims=True), np.linalg.norm(ti, axis=1, keepdims=True)
            x, y = c / cn, ti / tn
            r = x @ y.T
            e = np.exp(np.exp(theta) * (r - r.max()))
            p, q = e / e.sum(1, keepdims=True), e / e.sum(0, keepdims=True)
            loss -= (np.log(p.diagonal()).mean() + np.log(q.diagonal()).mean()) / 2
            self.cache.append((vi, ti, s, hi - lo, keep, total, a, cn, tn, x, y, r, p, q))
        return loss / len(v)

    def backward(self):
        """-> dv, dt, dtheta"""
        dv, dt, dtheta = np.zeros(self.shapes[0]), np.zeros(self.shapes[1]), 0.0
        k = np.exp(self.theta)
        for i, (vi, ti, s, span, keep, total, a, cn, tn, x, y, r, p, q) in enumerate(self.cache):
            n = len(ti)
            dz = (p + q - 2 * np.eye(n)) / (2 * n * len(self.cache))
            dtheta += k * (dz * r).sum()
            dx, dy = k * dz @ y, k * dz.T @ x
            dc = (dx - x * (dx * x).sum(1, keepdims=True)) / cn
            dti = (dy - y * (dy * y).sum(1, keepdims=True)) / tn
            da = dc @ vi.T
            dw = keep * (da - (da * a).sum(1, keepdims=True)) / total
            ds = dw / span
            rows = np.arange(n)
            ds[rows, s.argmin(1)] -= ds.sum(1)
            dti += ds @ vi
            dv[i] = ds.T @ ti
            dt[i, :n] = dti
        return dv, dt, dtheta
