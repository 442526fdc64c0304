"""SPARC's two losses: global (eq. 1) and fine-grained (eq. 6).

B batch, L tokens, P patches, D joint width.  theta = log(1/tau), a 0-d array.  d<name> is dLoss/d<name>.
"""

from collections.abc import Callable

from array_api_compat import array_namespace, device, size

from sparc_ref import ops
from sparc_ref.alignment import align_patches
from sparc_ref.backend import Array

REDUCTIONS = ("sample", "token")


def global_loss(v_bar: Array, t_bar: Array, theta: Array) -> tuple[Array, dict[str, Array], Callable]:
    """Eq. 1: every picture finds its caption among the batch's, and every caption its picture.

    v_bar, t_bar (B,D) need not be normalised.  L_g = 1/2 [CE(z) + CE(z')], z_ij = phi(v_bar_i, t_bar_j) / tau, mean over B.
    Returns loss (), trace, back; back(dloss) -> dv_bar, dt_bar, dtheta.
    trace: logits (B,B), loss_image, loss_text (B,) per sample.  Raises ValueError on wrong shapes, ArithmeticError when
    the loss is not finite.
    """
    xp = array_namespace(v_bar, t_bar)
    if v_bar.ndim != 2 or v_bar.shape[0] == 0:
        raise ValueError(f"v_bar: expected (B,D) with B >= 1, got {tuple(v_bar.shape)}")
    _expect("t_bar", t_bar, v_bar.shape, "(B,D) as v_bar")
    v_bar, narrow_v = ops.at_least_float32(v_bar)
    t_bar, narrow_t = ops.at_least_float32(t_bar)
    theta, narrow_theta = ops.at_least_float32(theta)

    v_hat, back_v = ops.l2_normalize(v_bar)
    t_hat, back_t = ops.l2_normalize(t_bar)
    cosine = v_hat @ t_hat.T                              # (B,B)
    logits = xp.exp(theta) * cosine
    loss_image, back_image = diagonal_cross_entropy(logits)
    loss_text, back_text = diagonal_cross_entropy(logits.T)
    loss = xp.mean(loss_image + loss_text) / 2
    _finite("global loss", loss, v_bar=v_bar, t_bar=t_bar, theta=theta)

    def back(dloss=1.0):
        each = xp.ones_like(loss_image) * (float(dloss) / (2 * v_bar.shape[0]))
        dlogits = back_image(each) + back_text(each).T
        dtheta = xp.sum(dlogits * logits)
        dcosine = xp.exp(theta) * dlogits
        return narrow_v(back_v(dcosine @ t_hat)), narrow_t(back_t(dcosine.T @ v_hat)), narrow_theta(dtheta)

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
    float16 and bfloat16 are computed in float32.  Raises ValueError on wrong shapes, dtypes or options, ArithmeticError
    when the loss or its gradient is not finite, except under flat="nan".
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(REDUCTIONS)}; got {reduction!r}")
    xp = array_namespace(v, t)
    T = xp.matrix_transpose
    if v.ndim != 3 or 0 in v.shape:
        raise ValueError(f"v: expected (B,P,D) with at least one of each, got {tuple(v.shape)}")
    batch, _, width = v.shape
    _expect("t", t, (batch, t.shape[1] if t.ndim == 3 else "L", width), f"(B,L,D) with B={batch}, D={width}")
    _expect("mask", mask, t.shape[:2], f"(B,L) with B={batch}, L={t.shape[1]}")
    if mask.dtype != xp.bool:
        raise ValueError(f"mask: expected bool, true = real token, got {mask.dtype}")
    v, narrow_v = ops.at_least_float32(v)
    t, narrow_t = ops.at_least_float32(t)
    theta, narrow_theta = ops.at_least_float32(theta)

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
    may_be_nan = options.get("flat") == "nan"
    if not may_be_nan:
        _finite("fine-grained loss", loss, v=v, t=t_real, theta=theta)

    def back(dloss=1.0):
        each = share * (float(dloss) / 2)
        dlogits = back_vt(each) + T(back_tv(each))
        dlogits = xp.where(mask[..., None] & columns, dlogits, 0.0)
        dtheta = xp.sum(dlogits * xp.where(mask[..., None] & columns, logits, 0.0))
        dcosine = xp.exp(theta) * dlogits
        dc = back_c(dcosine @ t_hat)
        dt, dv = back_align(dc)
        dt = dt + back_t(T(dcosine) @ c_hat)
        if not may_be_nan:
            _finite("gradient of the fine-grained loss", xp.sum(xp.abs(dt)) + xp.sum(xp.abs(dv)), v=v, t=t_real, theta=theta)
        return narrow_v(dv), narrow_t(xp.where(mask[..., None], dt, 0.0)), narrow_theta(dtheta)

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


def _expect(name, x, shape, words):
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name}: expected {words}, got {tuple(x.shape)}")


def _finite(what, value, **inputs):
    """Raise ArithmeticError that says which input is to blame, if `value` () is not finite."""
    xp = array_namespace(value)
    if bool(xp.isfinite(value)):
        return
    for name, x in inputs.items():
        bad = int(xp.sum(xp.astype(~xp.isfinite(x), xp.int64)))
        if bad:
            raise ArithmeticError(f"{what} is {float(value)}: {bad} of the {size(x)} numbers of {name} are NaN or infinite")
    largest = ", ".join(f"|{name}| up to {float(xp.max(xp.abs(x))):.3g}" for name, x in inputs.items())
    raise ArithmeticError(f"{what} is {float(value)}: it left the range of {value.dtype}; {largest}")
