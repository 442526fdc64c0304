"""Forward and backward of the token/patch loss in one pass, no autograd."""
import numpy as np


def _softmax(z, axis):
    e = np.exp(z - z.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def local_loss_and_grads(image_tokens, text_tokens, text_mask, log_scale):
    v, t, m = image_tokens, text_tokens, np.asarray(text_mask, bool)
    B, P, D = v.shape
    L = t.shape[1]
    scale = np.exp(log_scale)

    s = t @ v.transpose(0, 2, 1)
    lowest = s.argmin(-1)
    low, high = s.min(-1, keepdims=True), s.max(-1, keepdims=True)
    keep = (s - low) * P >= high - low
    w = (s - low) * keep
    g = w @ v                                                   # parallel to the grouped embedding

    gn, tn = np.linalg.norm(g, axis=-1, keepdims=True), np.linalg.norm(t, axis=-1, keepdims=True)
    gh, th = g / gn, t / tn
    cos = gh @ th.transpose(0, 2, 1)
    z = scale * cos
    rows = np.where(m[:, None, :], z, -1e30)
    cols = np.where(m[:, :, None], z, -1e30)
    p_rows, p_cols = _softmax(rows, 2), _softmax(cols, 1)
    n = m.sum(1)
    weight = m / (2.0 * B * n[:, None])
    idx = np.arange(L)
    nll = -np.log(np.where(m, p_rows[:, idx, idx], 1)) - np.log(np.where(m, p_cols[:, idx, idx], 1))
    loss = (weight * nll).sum()

    eye = np.eye(L)
    dz = weight[:, :, None] * (p_rows - eye) + weight[:, None, :] * (p_cols - eye)
    dscale = (dz * cos).sum()
    dgh, dth = scale * dz @ th, scale * dz.transpose(0, 2, 1) @ gh
    dg = (dgh - gh * (gh * dgh).sum(-1, keepdims=True)) / gn
    dt = (dth - th * (th * dth).sum(-1, keepdims=True)) / tn
    ds = (dg @ v.transpose(0, 2, 1)) * keep
    np.add.at(ds, (np.arange(B)[:, None], idx[None], lowest), -ds.sum(-1))
    dv = w.transpose(0, 2, 1) @ dg + ds.transpose(0, 2, 1) @ t
    dt = dt + ds @ v
    return loss, {"image_tokens": dv, "text_tokens": dt, "log_scale": dscale * scale}
