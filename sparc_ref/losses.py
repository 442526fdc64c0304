"""SPARC's two losses: global (eq. 1) and fine-grained (eq. 6).

B batch, L tokens, P patches, D joint width.  theta = log(1/tau), a number or a 0-d array, used in the embeddings' dtype.
Gradients come back in the dtype of what they belong to (a number's in the embeddings').  d<name> is dLoss/d<name>.
"""

from collections.abc import Callable

from array_api_compat import array_namespace, device, is_array_api_obj

from sparc_ref import ops
from sparc_ref.alignment import align_patches, blame, check_finite, check_shapes
from sparc_ref.backend import Array, check_arrays, in_one_dtype, narrow

REDUCTIONS = ("sample", "token")


def global_loss(v_bar: Array, t_bar: Array, theta: Array) -> tuple[Array, dict[str, Array], Callable]:
    """Eq. 1: every picture finds its caption among the batch's, and every caption its picture.

    v_bar, t_bar (B,D) need not be normalised.  L_g = 1/2 [CE(z) + CE(z')], z_ij = phi(v_bar_i, t_bar_j) / tau, mean over B.
    Returns loss (), trace, back; back(dloss) -> dv_bar, dt_bar, dtheta.
    trace: logits (B,B), loss_image, loss_text (B,) per sample.  Vectors may be of any length; one of zeros has cosines of 0
    and no gradient.  Raises ValueError on wrong shapes and dtypes, ArithmeticError when the loss, a gradient or 1/tau leaves
    the dtype's range.
    """
    check_arrays(v_bar=v_bar, t_bar=t_bar)
    xp = array_namespace(v_bar, t_bar)
    if v_bar.ndim != 2 or 0 in v_bar.shape:
        raise ValueError(f"v_bar: expected (B,D) with at least one of each, got {tuple(v_bar.shape)}")
    if tuple(t_bar.shape) != tuple(v_bar.shape):
        raise ValueError(f"t_bar: expected (B,D) as v_bar, got {tuple(t_bar.shape)}")
    (v_bar, t_bar), (narrow_v, narrow_t) = in_one_dtype(v_bar=v_bar, t_bar=t_bar)
    theta, narrow_theta = temperature(theta, v_bar)

    v_hat, back_v = ops.l2_normalize(v_bar)
    t_hat, back_t = ops.l2_normalize(t_bar)
    cosine = v_hat @ t_hat.T                              # (B,B)
    logits = xp.exp(theta) * cosine
    loss_image, back_image = diagonal_cross_entropy(logits)
    loss_text, back_text = diagonal_cross_entropy(logits.T)
    loss = xp.mean(loss_image + loss_text) / 2
    check_finite("global loss", loss, v_bar=v_bar, t_bar=t_bar, theta=theta)

    def back(dloss=1.0):
        each = xp.ones_like(loss_image) * (float(dloss) / (2 * v_bar.shape[0]))
        dlogits = back_image(each) + back_text(each).T
        dtheta = xp.sum(dlogits * logits)
        # exp(theta) comes last: it may be so small that, before it meets 1/|v_bar|, dlogits would be rounded away
        dv_bar, dt_bar = xp.exp(theta) * back_v(dlogits @ t_hat), xp.exp(theta) * back_t(dlogits.T @ v_hat)
        for name, d in (("v_bar", dv_bar), ("t_bar", dt_bar), ("theta", dtheta)):
            check_finite(f"gradient of {name}", d, dloss=each, v_bar=v_bar, t_bar=t_bar, theta=theta)
        return narrow_v(dv_bar), narrow_t(dt_bar), narrow_theta(dtheta)

    return loss, {"logits": logits, "loss_image": loss_image, "loss_text": loss_text}, back


def fine_grained_loss(
    v: Array, t: Array, mask: Array, theta: Array, *, reduction: str = "sample", **options
) -> tuple[Array, dict[str, Array], Callable]:
    """Eq. 6: every token finds its own group of patches among its caption's, and every group its token.

    v (B,P,D) patches, t (B,L,D) tokens, mask (B,L) bool, true = real token.
        c    = align_patches(t, v)                                  eqs. 2-5; `options` are align_patches' keywords
        z_jk = phi(c_j, t_k) / tau                                  trace["logits_vt"] (B,L,L), trace["logits_tv"] is z'
        L_f  = 1/2B sum_i 1/L_i sum_j [CE_j(z) + CE_j(z')]          trace["loss_vt"], trace["loss_tv"] (B,L) per token
    reduction "sample" is eq. 6; "token" is Listing 1: the sum over all real tokens of the batch by their number.
    Padding is neither row nor column; a caption of nothing else contributes 0.
    Returns loss (), trace (with align_patches' stages and "grouped" = c), back; back(dloss) -> dv, dt, dtheta.
    float16 and bfloat16 are computed in float32.  Vectors may be of any length as long as similarities and averages stay in
    the dtype's range (float32: 1e-38 to 4e31, see align_patches).  Raises ValueError on wrong shapes, dtypes or options,
    ArithmeticError when similarities, 1/tau, the loss or its gradient leave that range, except under flat="nan".
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(REDUCTIONS)}; got {reduction!r}")
    if mask is None:
        raise ValueError("mask: expected (B,L) bool, true = real token, got None; all true where nothing is padding")
    check_shapes(t, v, mask)
    xp = array_namespace(v, t)
    T = xp.matrix_transpose
    (v, t), (narrow_v, narrow_t) = in_one_dtype(v=v, t=t)
    theta, narrow_theta = temperature(theta, v)

    t_real = xp.where(mask[..., None], t, 0.0)
    c, trace, back_align = align_patches(t_real, v, mask, **options)
    c_hat, back_c = ops.l2_normalize(c)
    t_hat, back_t = ops.l2_normalize(t_real)
    logits = xp.exp(theta) * (c_hat @ T(t_hat))           # (B,L,L)
    columns = mask[:, None, :]
    loss_vt, back_vt = diagonal_cross_entropy(logits, columns)
    loss_tv, back_tv = diagonal_cross_entropy(T(logits), columns)
    share = token_shares(mask, reduction, logits.dtype)   # (B,L)
    loss = xp.sum(share * xp.where(mask, loss_vt + loss_tv, 0.0)) / 2
    undefined = options.get("flat") == "nan" and bool(xp.isnan(loss))
    if not undefined:
        check_finite("fine-grained loss", loss, v=v, t=t_real, theta=theta)

    def back(dloss=1.0):
        each = share * (float(dloss) / 2)
        dlogits = back_vt(each) + T(back_tv(each))
        dlogits = xp.where(mask[..., None] & columns, dlogits, 0.0)
        dtheta = xp.sum(dlogits * xp.where(mask[..., None] & columns, logits, 0.0))
        dt, dv = back_align(back_c(dlogits @ t_hat))
        dt = dt + back_t(T(dlogits) @ c_hat)
        dt, dv = xp.exp(theta) * xp.where(mask[..., None], dt, 0.0), xp.exp(theta) * dv
        for name, d in (("v", dv), ("t", dt), ("theta", dtheta)) if not undefined else ():
            check_finite(f"gradient of {name}", d, dloss=each, v=v, t=t_real, theta=theta)
        return narrow_v(dv), narrow_t(dt), narrow_theta(dtheta)

    named = {"grouped": c, "logits_vt": logits, "logits_tv": T(logits)}
    zero = xp.zeros_like(loss_vt)
    return loss, trace | named | {"loss_vt": xp.where(mask, loss_vt, zero), "loss_tv": xp.where(mask, loss_tv, zero)}, back


def diagonal_cross_entropy(z, columns=None):
    """Cross-entropy of each row with its own place as the label.      z (...,N,N) -> (...,N); back(dloss) -> dz

    columns (...,1,N) bool: which places take part; the others get no gradient.
    """
    xp = array_namespace(z)
    log_p, back_log_softmax = ops.log_softmax(z, columns)
    own = xp.eye(z.shape[-1], dtype=z.dtype, device=device(z))

    def back(dloss):
        return back_log_softmax(-own * dloss[..., None])

    return -xp.sum(log_p * own, axis=-1), back


def token_shares(mask, reduction, dtype):
    """How much each token counts.      mask (B,L) -> (B,L), 0 at padding

    "sample": 1/(B L_i), so that any split of the batch gives the same mean.  "token": 1/sum_i L_i.
    """
    xp = array_namespace(mask)
    real = xp.astype(mask, dtype)
    if reduction == "token":
        total = xp.sum(real)
        return real / xp.where(total == 0, 1.0, total)
    length = xp.sum(real, axis=1)[:, None]
    return real / xp.where(length == 0, 1.0, length) / mask.shape[0]


def temperature(theta, like):
    """theta as a 0-d array of the embeddings' dtype, and the way back of its gradient.   ValueError, ArithmeticError"""
    xp = array_namespace(like)
    own = like.dtype
    if isinstance(theta, int | float) and not isinstance(theta, bool):
        theta = xp.asarray(float(theta), dtype=own, device=device(like))
    else:
        if not is_array_api_obj(theta) or array_namespace(theta) != xp:
            raise ValueError(f"theta: expected a number or a 0-d array like the embeddings, got {type(theta)}")
        check_arrays(theta=theta)
        if theta.ndim != 0:
            raise ValueError(f"theta: expected a number or a 0-d array, log(1/tau), got the shape {tuple(theta.shape)}")
        own = theta.dtype
        (theta,), _ = in_one_dtype(theta=theta)           # refuses what is no float
        theta = xp.astype(theta, like.dtype, copy=False)
    check_finite("theta", theta, theta=theta)
    scale = xp.exp(theta)                                 # rounded off below the smallest normal number
    if not bool((scale >= xp.finfo(scale.dtype).smallest_normal) & (scale < xp.inf)):
        blame("1/tau = exp(theta)", f"{float(scale):.3g}", theta.dtype, {"theta": theta})
    return theta, lambda d: narrow(d, own, "theta")
