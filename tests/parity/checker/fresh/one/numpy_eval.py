import numpy as np


def _softmax_ce(z, labels):
    z = z - z.max(-1, keepdims=True)
    logp = z - np.log(np.exp(z).sum(-1, keepdims=True))
    return -np.take_along_axis(logp, labels[..., None], -1)[..., 0]


def sparc_fine_np(v, t, mask, tau):
    """NumPy evaluation. v (B,P,D), t (B,L,D), mask (B,L) float, tau."""
    s = np.einsum("bld,bpd->blp", t, v)
    s = (s - s.min(-1, keepdims=True)) / (np.ptp(s, axis=-1, keepdims=True) + 1e-12)
    s = np.where(s >= 1 / v.shape[1], s, 0)
    a = s / s.sum(-1, keepdims=True)
    v = v / np.linalg.norm(v, axis=-1, keepdims=True)
    t = t / np.linalg.norm(t, axis=-1, keepdims=True)
    c = a @ v
    c = c / np.linalg.norm(c, axis=-1, keepdims=True)
    z = c @ t.transpose(0, 2, 1) / tau
    labels = np.tile(np.arange(t.shape[1]), (len(t), 1))
    ct = _softmax_ce(z * mask[:, None, :], labels)
    tc = _softmax_ce(z.transpose(0, 2, 1) * mask[:, None, :], labels)
    per = ((ct + tc) * mask).sum(1) / (2 * np.maximum(mask.sum(1), 1))
    return per.mean()
