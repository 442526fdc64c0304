"""GLoRIA: every word attends to the patches, and words vote for a picture, in every pair of the batch; plus CLIP's loss.

B batch, L tokens, P patches, D joint width.
"""

import math
from collections.abc import Callable

from array_api_compat import array_namespace

from sparc_ref import ops
from sparc_ref.alignment import check_finite
from sparc_ref.backend import Array
from sparc_ref.losses import global_loss
from sparc_ref.objectives.shared import both_ways, by_columns, check_choice, open_inputs, open_scores, scaled

CHOICES = {"similarity": ("scaled", "dot"), "agg": ("sum", "mean"), "double_softmax": (False, True)}
LEARNED = ("theta_local", "theta_words", "theta_attention")


def gloria(
    params: dict[str, Array], v: Array, t: Array, mask: Array, v_bar: Array, t_bar: Array, *,
    temp1: float = 4.0, temp2: float = 5.0, temp3: float = 10.0, similarity: str = "scaled", double_softmax: bool = False,
    agg: str = "sum", chunk: int | None = None,
) -> tuple[Array, dict[str, Array], Callable]:
    """For picture i, caption j and its real words l:

    s_lp  = t_jl . v_ip / sqrt(D)                        neither side normalised
    a_l   = softmax_p(temp1 s_l);  c_l = sum_p a_lp v_ip
    Z_ij  = log sum_l exp(temp2 phi(c_l, t_jl))          parts["scores"] (B,B), pictures x captions
    L     = CE(temp3 Z) + CE(temp3 Z') + 2 L_g           sums of both directions, L_g is eq. 1 with params' theta

    Source: Huang et al. 2021 (ICCV), read in its code: the defaults of temp1, temp2, temp3 and the sums.  The division by
    sqrt(D), single tokens for aggregated words and learned temperatures are SPARC's (D.3, D.4), which does not say which are
    learned: here temp3 of both losses, theta (init log(1/0.07)) and theta_local (init log 10).  The paper's power outside
    of its eq. 6 is recalled, and left out as in the code.
    temp1, temp2, temp3   used where params hold no theta_attention, theta_words, theta_local: their logarithms, learned
    similarity      "scaled": divided by sqrt(D), "crucial" (D.3) | "dot": the public code
    double_softmax  True: s goes through a softmax over the words first, as the public code does and the paper's eq. 4 not
    agg             "sum": Z grows by log L_j, long captions are favoured | "mean": without that
    chunk           captions in a block of columns, see shared.by_columns
    Exact and cheap: c . t = sum_p a_p (t . v_p) and |c|^2 = a'(v v')a, so no (B,B,L,D) tensor: B^2 (LPD + LP^2) MAC.
    A pair whose caption has no real token is left out of the local loss.
    Returns loss (), parts (also loss_global, loss_local), back; back(dloss) -> gradients by name.  Errors as clip.
    """
    for name, value in (("similarity", similarity), ("double_softmax", double_softmax), ("agg", agg)):
        check_choice(name, value, CHOICES[name])
    for name, temp in (("temp1", temp1), ("temp2", temp2), ("temp3", temp3)):
        if not 0 < temp < float("inf"):
            raise ValueError(f"{name}: expected a positive number, got {temp}")
    learned = tuple(name for name in LEARNED if name in params)
    x, close = open_inputs(params, v, t, mask, v_bar, t_bar, ("theta", *learned))
    xp = array_namespace(x["v"])

    def theta_of(name, temp):
        return x[name] if name in x else xp.zeros_like(x["theta"]) + math.log(temp)

    theta1, theta2, theta3 = (theta_of(*pair) for pair in (
        ("theta_attention", temp1), ("theta_words", temp2), ("theta_local", temp3)))
    Z, back_scores = word_scores(
        x["v"], x["t"], mask, xp.exp(theta1), xp.exp(theta2), similarity=similarity, double_softmax=double_softmax, agg=agg,
        chunk=chunk)
    z, back_z = scaled(theta3, Z)
    loss_l, parts, back_ce = both_ways(z, z.T, x["real"])
    loss_l = 2 * loss_l
    loss_g, _, back_global = global_loss(x["v_bar"], x["t_bar"], x["theta"])
    loss = loss_l + 2 * loss_g
    check_finite("GLoRIA loss", loss, v=x["v"], t=x["t"], v_bar=x["v_bar"], t_bar=x["t_bar"], theta=x["theta"])

    def back(dloss=1.0):
        dz_image, dz_text = back_ce(2 * float(dloss))
        dtheta3, dZ = back_z(dz_image + dz_text.T)
        dv, dt, dtemp1, dtemp2 = back_scores(dZ)
        dv_bar, dt_bar, dtheta = back_global(2 * float(dloss))
        thetas = {"theta_attention": dtemp1 * xp.exp(theta1), "theta_words": dtemp2 * xp.exp(theta2), "theta_local": dtheta3}
        thetas = {name: thetas[name] for name in learned}
        return close("gloria", dloss, {"v": dv, "t": dt, "v_bar": dv_bar, "t_bar": dt_bar, "theta": dtheta, **thetas})

    return loss, {"scores": Z, "loss_global": 2 * loss_g, "loss_local": loss_l, **parts}, back


def word_scores(
    v: Array, t: Array, mask: Array, temp1: Array, temp2: Array, *, similarity: str = "scaled", double_softmax: bool = False,
    agg: str = "sum", chunk: int | None = None,
) -> tuple[Array, Callable]:
    """Z_ij as in gloria.      v (N,P,D), t (M,L,D) zeros at padding, mask (M,L), temp1, temp2 () -> (N,M)

    back(dZ) -> dv, dt, dtemp1, dtemp2.  A caption without a real token scores 0.
    """
    xp = array_namespace(v, t)
    T = xp.matrix_transpose
    N, P, D = v.shape
    M, L = mask.shape
    scale = 1 / math.sqrt(D) if similarity == "scaled" else 1.0
    gram = v @ T(v)                                       # (N,P,P)
    t_hat, _ = ops.l2_normalize(t)
    length = xp.vecdot(t, t_hat)                          # (M,L)
    length = xp.where(length == 0, 1.0, length)
    count = xp.sum(xp.astype(mask, v.dtype), axis=1)

    def block(part):
        words, own = xp.reshape(t[part, ...], (-1, D)), mask[part, :]        # (mL,D), (m,L)
        m = own.shape[0]
        r = words @ T(v)                                  # (N,mL,P), t . v
        s, back_words = scale * r, None
        if double_softmax:                                # over the caption's words first
            by_word = xp.permute_dims(xp.reshape(s, (N, m, L, P)), (0, 1, 3, 2))
            by_word, back_words = ops.softmax(by_word, own[:, None, :])      # (N,m,P,L)
            s = xp.reshape(xp.permute_dims(by_word, (0, 1, 3, 2)), (N, m * L, P))
        a, back_a = ops.softmax(temp1 * s)
        ag = a @ gram
        square = xp.vecdot(a, ag)                         # |c|^2 (N,mL)
        none = square <= 0
        square = xp.where(none, 1.0, square)
        size = xp.reshape(length[part, :], (-1,)) * xp.sqrt(square)
        cosine = xp.where(none, 0.0, xp.vecdot(a, r) / size)
        q = xp.reshape(temp2 * cosine, (N, m, L))
        votes, back_votes = log_sum_exp(q, own)           # (N,m)
        if agg == "mean":
            votes = votes - xp.log(xp.where(count[part] == 0, 1.0, count[part]))

        def back_block(dZ):                               # (N,m)
            dq = xp.reshape(back_votes(dZ), (N, m * L))
            dcosine = xp.where(none, 0.0, temp2 * dq)
            dnum = (dcosine / size)[..., None]
            dsquare = (-dcosine * cosine / (2 * square))[..., None]
            dlength = xp.sum(-dcosine * cosine, axis=0)   # (mL,), times length
            ds1 = back_a(dnum * r + 2 * dsquare * ag)     # of temp1 s
            ds = temp1 * ds1
            if double_softmax:
                ds = xp.permute_dims(xp.reshape(ds, (N, m, L, P)), (0, 1, 3, 2))
                ds = xp.reshape(xp.permute_dims(back_words(ds), (0, 1, 3, 2)), (N, m * L, P))
            dr = dnum * a + scale * ds
            dgram = T(a * dsquare) @ a
            flat = xp.reshape(xp.permute_dims(dr, (1, 0, 2)), (m * L, N * P))
            dwords = flat @ xp.reshape(v, (N * P, D))
            dwords = xp.reshape(dwords, (m, L, D))
            dwords = dwords + (xp.reshape(dlength, (m, L)) / length[part, :])[..., None] * t_hat[part, ...]
            return (T(dr) @ words, dgram, xp.sum(ds1 * s), xp.sum(dq * cosine)), (dwords,)

        return votes, back_block

    Z, back_blocks = by_columns(block, M, 3 * N * L * P, chunk)

    def back(dZ):
        (dv, dgram, dtemp1, dtemp2), (dt,) = back_blocks(dZ)
        return dv + 2 * (dgram @ v), dt, dtemp1, dtemp2

    return Z, back


def log_sum_exp(q: Array, mask: Array) -> tuple[Array, Callable]:
    """log of the sum of exp over what the mask leaves; 0 where that is nothing.      q (...,L), mask -> (...); back -> dq"""
    xp = array_namespace(q)
    log_p, _ = ops.log_softmax(q, mask)
    p = xp.where(mask, xp.exp(log_p), 0.0)
    first = xp.astype(mask, xp.int32)
    first = mask & (xp.cumulative_sum(first, axis=-1) == 1)                  # q - log p is the same at every real place
    return xp.sum(xp.where(first, q - log_p, 0.0), axis=-1), lambda d: p * d[..., None]


def gloria_scores(
    params: dict[str, Array], v: Array, t: Array, mask: Array, v_bar: Array, t_bar: Array, *,
    temp1: float = 4.0, temp2: float = 5.0, temp3: float = 10.0, similarity: str = "scaled", double_softmax: bool = False,
    agg: str = "sum", chunk: int | None = None,
) -> tuple[Array, Array]:
    """GLoRIA's own scores for retrieval, the same both ways: cosine of the global embeddings plus Z / temp2.

    Its paper combines both for retrieval (second-hand); how they are weighed is not known, so the local score is brought to
    a cosine's size.  v (N,P,D), t (M,L,D), mask (M,L), v_bar (N,D), t_bar (M,D) -> (N,M), (N,M)
    """
    v, t, v_bar, t_bar = open_scores(v=v, t=t, mask=mask, v_bar=v_bar, t_bar=t_bar)
    xp = array_namespace(v, t)
    temp1, temp2 = (xp.astype(xp.exp(params[name]), v.dtype) if name in params else xp.ones_like(v[0, 0, 0]) * temp
                    for name, temp in (("theta_attention", temp1), ("theta_words", temp2)))
    Z = word_scores(v, t, mask, temp1, temp2, similarity=similarity,
                    double_softmax=double_softmax, agg=agg, chunk=chunk)[0]
    s = ops.l2_normalize(v_bar)[0] @ ops.l2_normalize(t_bar)[0].T + Z / temp2
    check_finite("scores", s, v=v, t=t, v_bar=v_bar, t_bar=t_bar)
    return s, s
