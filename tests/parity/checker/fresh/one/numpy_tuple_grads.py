import numpy as np


def _ce_and_grad(z):
    z = z - z.max(1, keepdims=True)
    p = np.exp(z)
    p /= p.sum(1, keepdims=True)
    n = len(z)
    return -np.log(p[np.arange(n), np.arange(n)]).mean(), (p - np.eye(n)) / n


def sparc_numpy(image, text, pad, inv_tau):
    """image (B,P,D), text (B,L,D), pad (B,L) True at padding, inv_tau.
    Returns loss, d_image, d_text, d_inv_tau."""
    d_image, d_text, d_inv, total = np.zeros_like(image), np.zeros_like(text), 0.0, 0.0
    B = len(image)
    for b in range(B):
        rows = np.nonzero(~pad[b])[0]
        if not len(rows):
            continue
        w, x = text[b, rows], image[b]
        s = w @ x.T
        lo, hi = s.min(1)[:, None], s.max(1)[:, None]
        h = (s - lo) / (hi - lo)
        h[h < 1 / len(x)] = 0
        a = h / h.sum(1)[:, None]
        c = a @ x
        nc, nw = np.sqrt((c**2).sum(1))[:, None], np.sqrt((w**2).sum(1))[:, None]
        cu, wu = c / nc, w / nw
        r = cu @ wu.T
        l1, g1 = _ce_and_grad(inv_tau * r)
        l2, g2 = _ce_and_grad(inv_tau * r.T)
        total += (l1 + l2) / 2 / B
        g = (g1 + g2.T) / 2 / B
        d_inv += (g * r).sum()
        gc, gw = inv_tau * g @ wu, inv_tau * g.T @ cu
        gc = (gc - cu * (gc * cu).sum(1)[:, None]) / nc
        gw = (gw - wu * (gw * wu).sum(1)[:, None]) / nw
        # through the weights
        ga = gc @ x.T
        gh = (ga - (ga * a).sum(1)[:, None]) / h.sum(1)[:, None] * (h > 0)
        gs = gh / (hi - lo)
        d_text[b, rows] = gw + gs @ x
        d_image[b] = a.T @ gc + gs.T @ w
    return total, d_image, d_text, d_inv
