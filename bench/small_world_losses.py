"""Two changes of L_f that the small world tries; neither is the paper's.

    with instead(other_pictures): train(...)            `train` and `forward` use the changed loss inside the block
"""

from collections.abc import Callable
from contextlib import contextmanager

import numpy as np

from sparc_ref import losses, ops
from sparc_ref.alignment import align_patches
from sparc_ref.backend import in_one_dtype


def other_pictures(v, t, mask, theta, *, reduction: str = "sample", shifts: int = 4, **options):
    """Eq. 6, where each token must also prefer its own picture.      v (B,P,D), t (B,L,D), mask (B,L) -> loss, trace, back

    Besides the groups of its caption's other tokens, a token t_j gets `shifts` more negatives: its own group over the picture
    of the caption 1, 2, ... places before it in the batch.  A group that is the same in every picture is then no answer: it
    leaves log(1 + shifts) nats.  A word that the other caption holds too is a false negative; it is not looked for.
    """
    (v, t), (narrow_v, narrow_t) = in_one_dtype(v=v, t=t)
    theta, narrow_theta = losses.temperature(theta, v)
    T, L = np.matrix_transpose, t.shape[1]
    t = np.where(mask[..., None], t, 0.0)
    t_hat, back_t = ops.l2_normalize(t)
    c, trace, back_align = align_patches(t, v, mask, **options)
    c_hat, back_c = ops.l2_normalize(c)
    scale, columns = np.exp(theta), mask[:, None, :]
    logits = scale * (c_hat @ T(t_hat))                                           # (B,L,L)
    elsewhere = []
    for n in range(1, shifts + 1):
        e, _, back_align_e = align_patches(t, np.roll(v, n, 0), mask, **options)
        elsewhere.append((n, *ops.l2_normalize(e), back_align_e))
    more = [scale * np.sum(e_hat * t_hat, axis=-1) for _, e_hat, _, _ in elsewhere]
    extra = np.stack(more, axis=-1)                                               # (B,L,shifts)
    rows = np.concatenate([T(logits), extra], axis=-1)                            # (B,L,L+shifts)
    takes_part = np.concatenate([np.broadcast_to(columns, logits.shape), np.ones(extra.shape, bool)], axis=-1)
    own = np.eye(L, L + shifts, dtype=v.dtype)
    log_p, back_rows = ops.log_softmax(rows, takes_part)
    loss_vt, back_vt = losses.diagonal_cross_entropy(logits, columns)
    loss_tv = -np.sum(log_p * own, axis=-1)
    share = losses.token_shares(mask, reduction, logits.dtype)
    loss = np.sum(share * np.where(mask, loss_vt + loss_tv, 0.0)) / 2

    def back(dloss=1.0):
        each = share * (float(dloss) / 2)                                         # 0 at padding
        drows = back_rows(-own * each[..., None])
        dlogits = np.where(mask[..., None] & columns, back_vt(each) + T(drows[..., :L]), 0.0)
        dextra = np.where(mask[..., None], drows[..., L:], 0.0)
        dtheta = np.sum(dlogits * logits) + np.sum(dextra * extra)
        dcosine = scale * dlogits
        dt_hat = T(dcosine) @ c_hat
        dt, dv = back_align(back_c(dcosine @ t_hat))
        for k, (n, e_hat, back_e, back_align_e) in enumerate(elsewhere):
            d = scale * dextra[..., k, None]
            dt_hat = dt_hat + d * e_hat
            dt_e, dv_e = back_align_e(back_e(d * t_hat))
            dt, dv = dt + dt_e, dv + np.roll(dv_e, -n, 0)
        dt = np.where(mask[..., None], dt + back_t(dt_hat), 0.0)
        return narrow_v(dv), narrow_t(dt), narrow_theta(np.asarray(dtheta, v.dtype))

    named = {"grouped": c, "logits_vt": logits, "logits_tv": T(logits), "loss_vt": loss_vt, "loss_tv": loss_tv}
    return loss, trace | named, back


def merged_pairs(v, t, mask, theta, **options):
    """Eq. 6 over phrases of two tokens each: a phrase's token is the mean of both.      captions of 2, 4, ... tokens"""
    if np.any(mask[:, 0::2] != mask[:, 1::2]):
        raise ValueError("mask: expected captions of an even number of tokens, two for each phrase")
    loss, trace, back_fine = eq_6(v, (t[:, 0::2] + t[:, 1::2]) / 2, mask[:, 0::2], theta, **options)

    def back(dloss=1.0):
        dv, dphrases, dtheta = back_fine(dloss)
        return dv, np.repeat(dphrases / 2, 2, axis=1), dtheta

    return loss, {k: x for k, x in trace.items() if k in ("loss_vt", "loss_tv")}, back


eq_6 = losses.fine_grained_loss
CHANGED: dict[str, Callable] = {"": eq_6, "other pictures": other_pictures, "merged phrases": merged_pairs}


@contextmanager
def instead(name: str):
    """Inside the block the model's fine-grained loss is CHANGED[name]; "" is eq. 6 itself."""
    losses.fine_grained_loss = CHANGED[name]
    try:
        yield
    finally:
        losses.fine_grained_loss = eq_6
