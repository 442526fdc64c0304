"""Every differentiable primitive: y, back = op(x, ...), then dx, ... = back(dy).

B batch, L tokens, P patches, C width, N rows.  d<name> is dLoss/d<name>.  An op writes only into arrays that it made itself.
`back` may be called any number of times, each call on its own.  It keeps the arrays that it names: where only a shape is
needed, it names the shape, or else twice the memory would stay taken.
"""

import math
from collections.abc import Callable

from array_api_compat import array_namespace

from sparc_ref import backend
from sparc_ref.backend import Array


def at_least_float32(x: Array) -> tuple[Array, Callable]:
    """Widen float16 and bfloat16 to float32.      x -> x, back; the gradient returns in x's own dtype"""
    (wide,), (narrow,) = backend.in_one_dtype(x=x)
    return wide, narrow


def linear(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, Callable]:
    """y = x weight' + bias.      x (...,C), weight (K,C), bias (K,) or None -> (...,K); back -> dx, dweight[, dbias]"""
    xp = array_namespace(x, weight)
    shape = x.shape
    rows = xp.reshape(x, (-1, weight.shape[1]))           # (N,C): one large product beats many small ones
    y = rows @ weight.T                                   # (N,K)
    if bias is not None:
        y += bias

    def back(dy):
        dy = xp.reshape(dy, (-1, weight.shape[0]))        # (N,K)
        dx = xp.reshape(dy @ weight, shape)
        dweight = dy.T @ rows                             # (K,C)
        return (dx, dweight) if bias is None else (dx, dweight, xp.ones_like(dy[:, 0]) @ dy)

    return xp.reshape(y, (*shape[:-1], weight.shape[0])), back


def standardize(x: Array, eps: float = 1e-6) -> tuple[Array, Callable]:
    """x_hat = (x - mean) / sqrt(var + eps) over the last axis, the variance in a second pass.

    x (...,C) -> (...,C), NaN where the variance leaves the dtype's range (float32: |x - mean| of 1e19); back -> dx
    """
    xp = array_namespace(x)
    C = x.shape[-1]
    centred = x - xp.mean(x, axis=-1, keepdims=True)
    squares = xp.vecdot(centred, centred)[..., None]
    rstd = xp.where(squares < xp.inf, 1 / xp.sqrt(squares / C + eps), xp.nan)  # or else x_hat would be 0 and look sound
    x_hat = centred * rstd

    def back(dx_hat):
        along = xp.vecdot(dx_hat, x_hat)[..., None] / C
        return (dx_hat - xp.mean(dx_hat, axis=-1, keepdims=True) - x_hat * along) * rstd

    return x_hat, back


def layer_norm(x: Array, gain: Array, shift: Array, eps: float = 1e-6) -> tuple[Array, Callable]:
    """y = standardize(x) * gain + shift.      x (...,C), gain (C,), shift (C,) -> (...,C); back -> dx, dgain, dshift"""
    xp = array_namespace(x)
    x_hat, back_x_hat = standardize(x, eps)

    def back(dy):
        axes = tuple(range(dy.ndim - 1))
        return back_x_hat(dy * gain), xp.sum(dy * x_hat, axis=axes), xp.sum(dy, axis=axes)

    return x_hat * gain + shift, back


def gelu(x: Array, kind: str = "tanh") -> tuple[Array, Callable]:
    """y = x Phi(x), Phi the normal distribution.  kind "tanh": 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), or "erf".

    x (...,C) -> (...,C); back -> dx.  The slope is made together with the value, and NaN where x^2 leaves the dtype's range.
    """
    if kind not in ("tanh", "erf"):
        raise ValueError(f'gelu: expected "tanh" or "erf", got {kind!r}')
    y, slope = _gelu_tanh(x) if kind == "tanh" else _gelu_erf(x)
    return y, lambda dy: dy * slope


def _gelu_tanh(x):
    xp = array_namespace(x)
    k = math.sqrt(2 / math.pi)
    cubic = 0.044715 * k
    x2 = x * x                                            # x**3 is 290 times slower than x*x*x
    u = x2 * cubic
    u += k
    u *= x
    phi = xp.tanh(u)
    phi += 1
    phi *= 0.5                                            # y = x phi
    y = x * phi
    x2 *= 6 * cubic                                       # slope = phi + x dphi,  dphi = 2 phi (1 - phi) du
    x2 += 2 * k
    x2 *= y
    x2 *= 1 - phi
    x2 += phi
    return y, x2


def _gelu_erf(x):
    xp = array_namespace(x)
    phi = 0.5 + 0.5 * backend.erf(x * math.sqrt(0.5))
    return x * phi, phi + x * xp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def softmax(z: Array, mask: Array | None = None) -> tuple[Array, Callable]:
    """a = exp(z) / sum exp(z) over the last axis.  Masked entries get 0, and so does a row with nothing but masked entries.

    z (...,K), mask (...,K) bool that broadcasts to it, true = in -> (...,K); back -> dz
    """
    xp = array_namespace(z)
    a, total = _exp_rows(xp, z, mask)[:2]
    a /= total

    def back(da):
        dz = da - xp.vecdot(da, a)[..., None]
        dz *= a
        return dz

    return a, back


def log_softmax(z: Array, mask: Array | None = None) -> tuple[Array, Callable]:
    """log of softmax(z, mask).  Masked entries are left out by where() before exp; their value here is 0, so is their gradient.

    z (...,K), mask bool that broadcasts to it -> (...,K); back -> dz
    """
    xp = array_namespace(z)
    p, total, shifted = _exp_rows(xp, z, mask)
    p /= total
    log_p = shifted - xp.log(total)
    if mask is not None:
        log_p = xp.where(mask, log_p, 0.0)

    def back(dlog_p):
        if mask is not None:
            dlog_p = xp.where(mask, dlog_p, 0.0)
        return dlog_p - p * xp.sum(dlog_p, axis=-1, keepdims=True)

    return log_p, back


def _exp_rows(xp, z, mask):
    """exp(z - max), its sum (1 where a row is empty) and z - max, with masked entries out."""
    if mask is not None:
        z = xp.where(mask, z, -xp.inf)
    top = xp.max(z, axis=-1, keepdims=True)
    if mask is not None:
        top = xp.where(top == -xp.inf, 0.0, top)          # an empty row: -inf - 0, never -inf - -inf
    shifted = z - top
    e = xp.exp(shifted)
    total = xp.sum(e, axis=-1, keepdims=True)
    return e, total if mask is None else xp.where(total == 0, 1.0, total), shifted


def l2_normalize(x: Array) -> tuple[Array, Callable]:
    """y = x / |x| over the last axis, without an epsilon: right for any finite x, however short or long.

    x (...,D) -> (...,D); back -> dx, about dy / |x|, infinite where that leaves the dtype's range.  A vector of zeros has no
    direction: it stays as it is and gets no gradient.
    """
    xp = array_namespace(x)
    top = xp.max(xp.abs(x), axis=-1, keepdims=True)
    zero = top == 0
    top = xp.where(zero, 1.0, top)                        # |x| = top |x/top|: no square leaves the range
    y = x / top
    length = xp.sqrt(xp.vecdot(y, y))[..., None]          # 1 to sqrt(D)
    length = xp.where(zero, 1.0, length)
    y /= length
    length = xp.where(zero, xp.inf, length)               # from here on: no direction, no gradient

    def back(dy):
        return (dy - y * xp.vecdot(y, dy)[..., None]) / length / top

    return y, back


def masked_mean(x: Array, mask: Array | None = None) -> tuple[Array, Callable]:
    """Mean over the real tokens; 0 where there are none.      x (B,L,C), mask (B,L) bool or None -> (B,C); back -> dx"""
    xp = array_namespace(x)
    if mask is None:
        return xp.mean(x, axis=1), lambda dy: xp.broadcast_to((dy / x.shape[1])[:, None, :], x.shape)
    count = xp.sum(xp.astype(mask, x.dtype), axis=1)[:, None]
    count = xp.where(count == 0, 1.0, count)              # (B,1)
    y = xp.sum(xp.where(mask[..., None], x, 0.0), axis=1) / count

    def back(dy):
        return xp.where(mask[..., None], (dy / count)[:, None, :], 0.0)

    return y, back


def attention(qkv: Array, heads: int, mask: Array | None = None) -> tuple[Array, Callable]:
    """Multi-head attention: softmax(q k' / sqrt(C/heads)) v in each head.  Padding is masked as keys.

    qkv (B,L,3C): queries, keys and values side by side; mask (B,L) bool or None -> (B,L,C); back -> dqkv
    """
    xp = array_namespace(qkv)
    T = xp.matrix_transpose
    B, L, C = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    H = heads
    if C % H:
        raise ValueError(f"attention: expected a width that {H} heads divide, got {C}")

    def split(x):                                         # (B,L,C) -> (B,H,L,C/H)
        return xp.permute_dims(xp.reshape(x, (B, L, H, C // H)), (0, 2, 1, 3))

    def merge(x):                                         # (B,H,L,C/H) -> (B,L,C)
        return xp.reshape(xp.permute_dims(x, (0, 2, 1, 3)), (B, L, C))

    scale = (C // H) ** -0.5
    q, k, v = (split(qkv[..., i * C : (i + 1) * C]) for i in range(3))
    q = q * scale
    a, back_softmax = softmax(q @ T(k), None if mask is None else mask[:, None, None, :])  # (B,H,L,L)

    def back(dy):
        dy = split(dy)
        ds = back_softmax(dy @ T(v))
        dq, dk, dv = ds @ k * scale, T(ds) @ q, T(a) @ dy
        return xp.concat([merge(dq), merge(dk), merge(dv)], axis=-1)

    return merge(a @ v), back


def embedding(ids: Array, weight: Array) -> tuple[Array, Callable]:
    """y = weight[ids].      ids (B,L) int in [0,V), weight (V,C) -> (B,L,C); back -> dweight, rows of equal ids summed"""
    xp = array_namespace(ids, weight)
    flat = xp.reshape(ids, (-1,))
    y = xp.reshape(xp.take(weight, flat, axis=0), (*ids.shape, weight.shape[1]))

    def back(dy):
        return backend.scatter_add(flat, xp.reshape(dy, (-1, weight.shape[1])), weight.shape[0])

    return y, back


def patch_embedding(images: Array, weight: Array, bias: Array, patch: int) -> tuple[Array, Callable]:
    """Cut images into patches, row by row, and map each linearly: a convolution whose stride is its kernel.

    images (B,3,H,W), weight (C,3*patch*patch) in the order channel, row, column -> (B,P,C); back -> dimages, dweight, dbias
    """
    xp = array_namespace(images, weight)
    batch, channels, height, width = images.shape
    if height % patch or width % patch:
        raise ValueError(f"images: expected height and width that the patch size {patch} divides, got {height} x {width}")
    grid = (batch, channels, height // patch, patch, width // patch, patch)
    cut = xp.permute_dims(xp.reshape(images, grid), (0, 2, 4, 1, 3, 5))
    y, back_linear = linear(xp.reshape(cut, (batch, -1, channels * patch * patch)), weight, bias)

    def back(dy):
        dcut, dweight, dbias = back_linear(dy)
        dcut = xp.permute_dims(xp.reshape(dcut, cut.shape), (0, 3, 1, 4, 2, 5))
        return xp.reshape(dcut, images.shape), dweight, dbias

    return y, back
