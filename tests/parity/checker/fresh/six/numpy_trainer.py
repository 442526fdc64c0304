"""Token loss of SPARC with its gradient, numpy only.

    loss, (d_patches, d_tokens, d_log_scale) = loss_and_grad(patches, tokens, mask, log_scale)
"""
import numpy as np


def unit_fwd(x):
    r = np.linalg.norm(x, axis=-1, keepdims=True)
    u = x / r

    def bwd(du):
        return (du - u * np.sum(u * du, -1, keepdims=True)) / r
    return u, bwd


def align_fwd(t, v):
    s = t @ v.T
    lo = s.min(-1, keepdims=True)
    hi = s.max(-1, keepdims=True)
    is_lo, is_hi = s == lo, s == hi
    h = (s - lo) / (hi - lo)
    k = h >= 1 / len(v)
    q = h * k
    tot = q.sum(-1, keepdims=True)
    a = q / tot

    def bwd(da):
        dh = k * (da - np.sum(a * da, -1, keepdims=True)) / tot
        ds = dh / (hi - lo)
        dhi = -np.sum(ds * h, -1, keepdims=True)
        dlo = -np.sum(ds * (1 - h), -1, keepdims=True)
        ds = ds + is_hi * dhi + is_lo * dlo
        return ds @ v, ds.T @ t
    return a, bwd


def xent_fwd(z):
    e = np.exp(z - z.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    return -np.log(np.diag(p)).mean(), (p - np.eye(len(z))) / len(z)


def sample(v, t, log_scale):
    a, align_bwd = align_fwd(t, v)
    cu, cu_bwd = unit_fwd(a @ v)
    tu, tu_bwd = unit_fwd(t)
    scale = np.exp(log_scale)
    cos = cu @ tu.T
    l1, dz1 = xent_fwd(scale * cos)
    l2, dz2 = xent_fwd(scale * cos.T)
    dz = (dz1 + dz2.T) / 2
    dscale = np.sum(dz * cos)
    dcos = dz * scale
    dc = cu_bwd(dcos @ tu)
    dt_, dv_ = align_bwd(dc @ v.T)
    return (l1 + l2) / 2, dv_ + a.T @ dc, dt_ + tu_bwd(dcos.T @ cu), dscale


def loss_and_grad(patches, tokens, mask, log_scale):
    n = len(patches)
    dP, dT, ds, loss = np.zeros_like(patches), np.zeros_like(tokens), 0.0, 0.0
    for i in range(n):
        m = mask[i].astype(bool)
        l, dv, dt, d = sample(patches[i], tokens[i][m], log_scale)
        loss += l / n
        dP[i] = dv / n
        dT[i][m] = dt / n
        ds += d / n
    return loss, (dP, dT, ds)
