"""FILIP: every patch finds its best word, every word its best patch, in every pair of the batch.  And CLIP + FILIP.

B batch, L tokens, P patches, D joint width.  X_i (P,D) are picture i's patches, Y_j (L,D) caption j's tokens, normalised.
"""

import math
from collections.abc import Callable

from array_api_compat import array_namespace

from sparc_ref import ops
from sparc_ref.alignment import check_finite, share
from sparc_ref.backend import Array
from sparc_ref.objectives.clip import clip
from sparc_ref.objectives.shared import blocks, both_ways, by_columns, check_choice, open_inputs, open_scores, rows_of, scaled

CHOICES = {"drop_side": ("gathered", "both"), "select": ("batch", "pair"), "ties": ("share", "first")}


def filip(
    params: dict[str, Array], v: Array, t: Array, mask: Array, v_bar: Array, t_bar: Array, *,
    keep: float = 0.2, drop_side: str = "gathered", select: str = "batch", ties: str = "share", chunk: int | None = None,
) -> tuple[Array, dict[str, Array], Callable]:
    """A_ij = X_i Y_j' (P,L) for every pair of the batch; the best of each row, and of each column:

    s_I(i,j) = 1/P   sum_p max_{l real, kept} A_ij[p,l]      parts["scores_image"], pictures x captions
    s_T(i,j) = 1/L_j sum_{l real} max_{p kept} A_ij[p,l]     parts["scores_text"], captions x pictures
    L        = 1/2 [CE over captions of exp(theta) s_I + CE over pictures of exp(theta) s_T]

    Source: Yao et al. 2021 (arXiv 2111.07783), no official code.  The form of both scores was read in x-clip's code, the rest
    second-hand, from notes on the paper: the mean over real tokens, padding out before the maximum, token dropping.
    keep        share of each sample's tokens that others are compared with, those of the largest similarity, at least one.
                SPARC's "20 % token dropping" (D.4) may mean keep 0.2 or 0.8; its Table 11 fits 0.2.  1: nothing is dropped
    drop_side   "gathered": a sample asks with all of its tokens, and is asked with those kept (DeCLIP's code; FILIP's,
                second-hand) | "both": it asks with those kept as well
    select      what a token's similarity is the maximum over: the real tokens of the whole "batch" (recalled; a device's own
                part of it in the original) | of the token's own "pair".  No gradient passes through the choice
    ties        the gradient of a tied maximum: "share" it evenly | "first" takes it all
    chunk       samples in a block of columns, see shared.by_columns; no (B,B,P,L) tensor is made
    params: theta (), or theta_filip where there is one.  v_bar, t_bar (B,D): taken and not used.  Each direction makes its own
    products: 2 keep B^2 L P D MAC.  A pair whose caption has no real token is left out of the batch.
    Returns loss (), parts, back; back(dloss) -> gradients by name.  ValueError, ArithmeticError as clip.
    """
    for name, value in (("drop_side", drop_side), ("select", select), ("ties", ties)):
        check_choice(name, value, CHOICES[name])
    if not 0 < keep <= 1:
        raise ValueError(f"keep: expected a share of tokens in (0, 1], got {keep}")
    theta = "theta_filip" if "theta_filip" in params else "theta"
    x, close = open_inputs(params, v, t, mask, v_bar, t_bar, (theta,))
    xp = array_namespace(x["v"])
    patches, back_patches = ops.l2_normalize(x["v"])      # (B,P,D)
    words, back_words = ops.l2_normalize(x["t"])          # (B,L,D), zeros at padding
    all_patches = xp.ones_like(patches[..., 0], dtype=xp.bool)
    best_v, best_t = best_of_others(patches, words, mask, select, chunk) if keep < 1 else (None, None)
    kept_v, in_v, back_v = kept(patches, all_patches, best_v, keep)
    kept_t, in_t, back_t = kept(words, mask, best_t, keep)
    gathered = drop_side == "gathered"
    ask_v, ask_t = ((patches, all_patches), (words, mask)) if gathered else ((kept_v, in_v), (kept_t, in_t))
    s_image, back_image = late_interaction(*ask_v, kept_t, in_t, ties, chunk)  # pictures x captions
    s_text, back_text = late_interaction(*ask_t, kept_v, in_v, ties, chunk)    # captions x pictures
    z_image, back_z_image = scaled(x[theta], s_image)
    z_text, back_z_text = scaled(x[theta], s_text)
    loss, parts, back_ce = both_ways(z_image, z_text, x["real"])
    check_finite("FILIP loss", loss, v=x["v"], t=x["t"], theta=x[theta])

    def back(dloss=1.0):
        dz_image, dz_text = back_ce(dloss)
        (dtheta_i, ds_image), (dtheta_t, ds_text) = back_z_image(dz_image), back_z_text(dz_text)
        dask_v, dkept_t = back_image(ds_image)
        dask_t, dkept_v = back_text(ds_text)
        dpatches = dask_v + back_v(dkept_v) if gathered else back_v(dask_v + dkept_v)
        dwords = dask_t + back_t(dkept_t) if gathered else back_t(dask_t + dkept_t)
        return close("filip", dloss, {"v": back_patches(dpatches), "t": back_words(dwords), theta: dtheta_i + dtheta_t})

    return loss, {"scores_image": s_image, "scores_text": s_text, **parts}, back


def clip_filip(
    params: dict[str, Array], v: Array, t: Array, mask: Array, v_bar: Array, t_bar: Array, *,
    weight_clip: float = 0.5, weight_filip: float = 0.5, **options,
) -> tuple[Array, dict[str, Array], Callable]:
    """weight_clip L_clip + weight_filip L_filip: SPARC's Tables 9 and 10, where the weights are not stated.

    params: theta for CLIP, theta_filip for FILIP (theta for both where it is absent; the paper is silent).  options are
    filip's.  Returns loss (), parts (loss_clip, loss_filip () and FILIP's), back, as filip.
    """
    loss_c, _, back_c = clip(params, v, t, mask, v_bar, t_bar)
    loss_f, parts, back_f = filip(params, v, t, mask, v_bar, t_bar, **options)

    def back(dloss=1.0):
        a, b = back_c(weight_clip * float(dloss)), back_f(weight_filip * float(dloss))
        return {name: a[name] + b[name] if name in a and name in b else (a | b)[name] for name in a | b}

    return weight_clip * loss_c + weight_filip * loss_f, {"loss_clip": loss_c, "loss_filip": loss_f, **parts}, back


def late_interaction(
    q: Array, q_real: Array, k: Array, k_real: Array, ties: str = "share", chunk: int | None = None
) -> tuple[Array, Callable]:
    """score(i,j) = mean over i's real tokens n of max over j's real tokens m of q_in . k_jm

    q (N,Q,D), q_real (N,Q) bool, k (M,K,D), k_real (M,K) bool -> (N,M); back -> dq, dk.  The way back finds the maxima again.
    A sample without a real token counts as zeros: its tokens must be zeros.
    """
    xp = array_namespace(q, k)
    N, Q, D = q.shape
    M, K = k_real.shape
    weight = xp.astype(q_real, q.dtype)
    total = xp.sum(weight, axis=1, keepdims=True)
    weight = (weight / xp.where(total == 0, 1.0, total))[:, :, None]  # (N,Q,1)
    k_real = k_real | ~xp.any(k_real, axis=1, keepdims=True)
    asking = xp.reshape(q, (N * Q, D))

    def block(part):
        answers = xp.reshape(k[part, ...], (-1, D))       # (mK,D)
        m = answers.shape[0] // K
        a = xp.reshape(asking @ answers.T, (N, Q, m, K))
        a = xp.where(k_real[part, :], a, -xp.inf)
        best = xp.max(a, axis=-1, keepdims=True)          # (N,Q,m,1)

        def back_block(dscore):                           # (N,m)
            da = share((weight * dscore[:, None, :])[..., None], a == best, ties)
            da = xp.reshape(da, (N * Q, m * K))
            return (xp.reshape(da @ answers, (N, Q, D)),), (xp.reshape(da.T @ asking, (m, K, D)),)

        return xp.sum(weight * best[..., 0], axis=1), back_block

    scores, back_blocks = by_columns(block, M, N * Q * K, chunk)

    def back(dscores):
        (dq,), (dk,) = back_blocks(dscores)
        return dq, dk

    return scores, back


def filip_scores(
    params: dict[str, Array], v: Array, t: Array, mask: Array, v_bar: Array, t_bar: Array, chunk: int | None = None
) -> tuple[Array, Array]:
    """FILIP's own scores for retrieval, with every token: s_I for pictures that ask, s_T for captions that ask.

    v (N,P,D), t (M,L,D), mask (M,L); params, v_bar and t_bar are not used -> (N,M) pictures x captions, (N,M)
    """
    v, t = open_scores(v=v, t=t, mask=mask)
    xp = array_namespace(v, t)
    patches, words = ops.l2_normalize(v)[0], ops.l2_normalize(t)[0]
    every = xp.ones_like(patches[..., 0], dtype=xp.bool)
    s_image = late_interaction(patches, every, words, mask, chunk=chunk)[0]
    return s_image, late_interaction(words, mask, patches, every, chunk=chunk)[0].T


def kept(x, real, best, keep):
    """The tokens that others see: the `keep` best of each sample's real ones.

    x (B,N,D), real (B,N) bool, best (B,N) -> (B,K,D), which of them are real (B,K), back
    """
    if best is None:
        return x, real, lambda dx: dx
    xp = array_namespace(x)
    size = at_least_one(keep, x.shape[1])
    order = xp.argsort(xp.where(real, best, -xp.inf), axis=1, descending=True, stable=True)[:, :size]
    number = xp.sum(xp.astype(real, x.dtype), axis=1, keepdims=True)
    number = xp.where(number == 0, 0.0, xp.ceil(keep * number - 1e-4))     # at least 1 of at least 1: keep > 0
    number = xp.where((number == 0) & xp.any(real, axis=1, keepdims=True), 1.0, number)
    place = xp.cumulative_sum(xp.ones_like(x[:, :size, 0]), axis=1)         # 1, 2, ..., K
    y, back = rows_of(x, order)
    return y, place <= number, back


def at_least_one(keep: float, tokens: int) -> int:
    """How many of so many tokens are kept: rounded up (1e-4 below, for 0.2 is no whole number of bits)."""
    return max(1, math.ceil(keep * tokens - 1e-4))


def best_of_others(patches, words, mask, select, chunk):
    """Each token's largest similarity to a token of the other kind, of pairs with a real token.      -> (B,P), (B,L)"""
    xp = array_namespace(patches)
    if select == "pair":
        a = patches @ xp.matrix_transpose(words)          # (B,P,L)
        some = mask | ~xp.any(mask, axis=1, keepdims=True)
        return xp.max(xp.where(some[:, None, :], a, -xp.inf), axis=2), xp.max(a, axis=1)
    B, P, D = patches.shape
    L = words.shape[1]
    asking = xp.reshape(patches, (B * P, D))
    pairs = xp.reshape(xp.broadcast_to(xp.any(mask, axis=1)[:, None], (B, P)), (-1, 1))
    best_v, best_t = xp.full_like(asking[:, 0], -xp.inf), []
    for part in blocks(B, B * P * L, chunk):
        s = asking @ xp.reshape(words[part, ...], (-1, D)).T                # (BP,mL)
        best_t.append(xp.max(xp.where(pairs, s, -xp.inf), axis=0))
        best_v = xp.maximum(best_v, xp.max(xp.where(xp.reshape(mask[part, :], (-1,)), s, -xp.inf), axis=1))
    return xp.reshape(best_v, (B, P)), xp.reshape(xp.concat(best_t), (B, L))
