# SPARC local loss, forward + backward by hand. No autograd needed, just numpy.
# Checked with finite differences.
import numpy as np


def _normalize(x):
    n = np.sqrt((x ** 2).sum(axis=-1, keepdims=True))
    return x / n, n


def _normalize_backward(dy, y, n):
    return (dy - y * (dy * y).sum(axis=-1, keepdims=True)) / n


def _log_softmax(z):
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def _one(v, t, scale):
    """v [P, D], t [n, D] -> loss, dv, dt, dscale"""
    P, n = v.shape[0], t.shape[0]
    rows = np.arange(n)

    # ---- forward
    s = t @ v.T
    imin, imax = s.argmin(axis=1), s.argmax(axis=1)
    lo, hi = s[rows, imin][:, None], s[rows, imax][:, None]
    h = (s - lo) / (hi - lo)
    keep = h >= 1.0 / P
    q = np.where(keep, h, 0.0)
    Z = q.sum(axis=1, keepdims=True)
    a = q / Z
    c = a @ v
    cn, c_norm = _normalize(c)
    tn, t_norm = _normalize(t)
    cos = cn @ tn.T
    z = scale * cos
    lp1, lp2 = _log_softmax(z), _log_softmax(z.T)
    loss = -(np.trace(lp1) + np.trace(lp2)) / (2 * n)

    # ---- backward
    eye = np.eye(n)
    dz = ((np.exp(lp1) - eye) + (np.exp(lp2) - eye).T) / (2 * n)
    dscale = (dz * cos).sum()
    dcos = scale * dz
    dc = _normalize_backward(dcos @ tn, cn, c_norm)
    dt = _normalize_backward(dcos.T @ cn, tn, t_norm)
    da = dc @ v.T
    dv = a.T @ dc
    dq = (da - (da * a).sum(axis=1, keepdims=True)) / Z
    dh = np.where(keep, dq, 0.0)
    ds = dh / (hi - lo)
    d_hi = -(dh * h).sum(axis=1) / (hi - lo)[:, 0]
    d_lo = -ds.sum(axis=1) - d_hi
    ds[rows, imin] += d_lo
    ds[rows, imax] += d_hi
    dt += ds @ v
    dv += ds.T @ t
    return loss, dv, dt, dscale


def sparc_local(patches, tokens, lengths, logit_scale):
    """patches [B, P, D], tokens [B, T, D], lengths [B] ints, logit_scale = 1/temperature.

    Returns the loss and a dict of gradients with the same shapes as the inputs.
    """
    B = len(patches)
    grads = {
        "patches": np.zeros_like(patches),
        "tokens": np.zeros_like(tokens),
        "logit_scale": 0.0,
    }
    loss = 0.0
    for b in range(B):
        n = int(lengths[b])
        if n == 0:
            continue
        l, dv, dt, dscale = _one(patches[b], tokens[b, :n], logit_scale)
        loss += l / B
        grads["patches"][b] = dv / B
        grads["tokens"][b, :n] = dt / B
        grads["logit_scale"] += dscale / B
    return loss, grads
