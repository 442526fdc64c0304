"""SPARC's alignment: which patches does each token mean?  Eqs. 2-5, forward and gradient in one place.

B batch, L tokens, P patches, D joint width.  t (B,L,D) tokens, v (B,P,D) patches.  d<name> is dLoss/d<name>.
"""

from collections.abc import Callable

from array_api_compat import array_namespace, size

from sparc_ref import ops
from sparc_ref.backend import Array, check_arrays, dtype_name, in_one_dtype

CHOICES = {
    "similarity": ("dot", "cosine"),
    "align": ("minmax", "no_threshold", "softmax"),
    "threshold_on": ("minmax", "weights"),
    "flat": ("uniform", "zero", "nan"),
    "ties": ("share", "first"),
}


def align_patches(
    t: Array,
    v: Array,
    mask: Array | None = None,
    *,
    sigma: float | None = None,
    similarity: str = "dot",
    align: str = "minmax",
    threshold_on: str = "minmax",
    flat: str = "uniform",
    ties: str = "share",
) -> tuple[Array, dict[str, Array], Callable]:
    """Average, for every token, the patches that resemble it.      t (B,L,D), v (B,P,D) -> c (B,L,D)

    s     = t v'                                          trace["similarity"]: plain inner product, signed
    s_hat = (s - min_p s) / (max_p s - min_p s)           trace["minmax"], eq. 2
    s_til = s_hat where s_hat >= sigma, else 0            trace["sparse"], eq. 3; sigma is 1/P unless given
    a     = s_til / sum_p s_til                           trace["weights"], eq. 4, rows sum to 1
    c     = a v                                           eq. 5, language-grouped vision embeddings

    mask (B,L) bool, true = real token: a padding token gets similarity, weights and c of 0 whatever it holds.
    similarity    "dot" | "cosine": compare directions only; the average is of the plain patches either way
    align         "minmax" | "no_threshold": sigma = 0 | "softmax": a = softmax_p(s), no minmax and no sparse (Table 8)
    threshold_on  "minmax": as above | "weights": eq. 4, then the threshold, then eq. 4 again
    flat          rows where every patch is alike and eq. 2 is 0/0 (and rows where no weight reaches sigma):
                  "uniform": a = 1/P, no gradient through s | "zero": c = 0 | "nan": the literal 0/0
    ties          the gradient of a tied minimum or maximum: "share" it evenly | "first" takes it all
    Returns c, trace, back; back(dc) -> dt, dv in the dtypes of t and v.  float16 and bfloat16 are computed in float32.
    Raises ValueError for wrong shapes and dtypes, an unknown option and sigma outside [0, 1]; ArithmeticError for NaN or
    infinity in a real token or a patch, and where similarities leave the range of the dtype.
    """
    check_options(similarity=similarity, align=align, threshold_on=threshold_on, flat=flat, ties=ties)
    check_shapes(t, v, mask)
    xp = array_namespace(t, v)
    (t, v), (narrow_t, narrow_v) = in_one_dtype(t=t, v=v)
    T = xp.matrix_transpose
    patches = v.shape[1]
    sigma = 1 / patches if sigma is None else sigma
    if not 0 <= sigma <= 1:
        raise ValueError(f"sigma: expected a threshold in [0, 1], such as 1/P = {1 / patches:.4g}, got {sigma}")
    sigma = 0.0 if align == "no_threshold" else sigma

    if mask is not None:
        t = xp.where(mask[..., None], t, 0.0)
    (key_t, back_key_t), (key_v, back_key_v) = (
        (ops.l2_normalize(t), ops.l2_normalize(v)) if similarity == "cosine" else ((t, _same), (v, _same))
    )
    s = key_t @ T(key_v)                                  # (B,L,P)
    if align == "softmax":
        check_finite("similarity", s, v=v, t=t)
        a, back_a = ops.softmax(s)
        stages = {}
    else:
        lo, hi = xp.min(s, axis=-1, keepdims=True), xp.max(s, axis=-1, keepdims=True)  # (B,L,1)
        check_range(lo, hi, key_t, key_v, v=v, t=t)
        a, stages, back_a = sparse_weights(s, lo, hi, sigma, threshold_on, flat, ties, mask)
    if mask is not None:
        a = xp.where(mask[..., None], a, 0.0)
    c = a @ v                                             # (B,L,D)
    if flat != "nan":
        check_finite("c", c, v=v, t=t)
    top = xp.max(xp.abs(v), axis=(1, 2))                  # (B,)
    if bool(xp.any((top > 0) & (top < xp.finfo(v.dtype).smallest_normal))):
        blame("c", "an average of too few bits", v.dtype, {"v": v, "t": t})

    def back(dc):
        dc = xp.astype(dc, v.dtype, copy=False)
        da = dc @ T(v)                                    # (B,L,P)
        if mask is not None:
            da = xp.where(mask[..., None], da, 0.0)
        ds = back_a(da)
        dt = back_key_t(ds @ key_v)
        if mask is not None:
            dt = xp.where(mask[..., None], dt, 0.0)
        dv = back_key_v(T(ds) @ key_t) + T(a) @ dc        # v is used twice, as key and as value
        return narrow_t(dt), narrow_v(dv)

    return c, {"similarity": s, **stages, "weights": a}, back


def sparse_weights(s, lo, hi, sigma, threshold_on, flat, ties, mask=None):
    """Eqs. 2-4.      s (B,L,P), its rows' extrema (B,L,1) -> a (B,L,P), {minmax, sparse}, back; back(da) -> ds"""
    xp = array_namespace(s)
    s_hat, flat_rows, back_minmax = min_max(s, lo, hi, ties)
    x, back_first = normalize_rows(s_hat) if threshold_on == "weights" else (s_hat, _same)
    keep = x >= sigma
    s_til = xp.where(keep, x, 0.0)
    a, back_second = normalize_rows(s_til)
    none_left = xp.sum(s_til, axis=-1, keepdims=True) == 0
    a = xp.where(none_left, 1 / s.shape[-1], a)           # as flat rows have it already
    if flat != "uniform":
        undefined = flat_rows | none_left
        if mask is not None:
            undefined = undefined & mask[..., None]
        a = xp.where(undefined, 0.0 if flat == "zero" else xp.nan, a)
    shown = s_til if threshold_on == "minmax" else xp.where(flat_rows, 1.0, s_til)

    def back(da):
        return back_minmax(back_first(xp.where(keep, back_second(da), 0.0)))

    return a, {"minmax": s_hat, "sparse": shown}, back


def min_max(s, lo, hi, ties="share"):
    """Eq. 2, each row stretched to [0, 1]; a flat row becomes ones.      s (...,P) -> s_hat, flat (...,1) bool, back"""
    xp = array_namespace(s)
    flat = hi == lo
    width = xp.where(flat, 1.0, hi - lo)
    s_hat = xp.where(flat, 1.0, (s - lo) / width)

    def back(ds_hat):
        ds = xp.where(flat, 0.0, ds_hat) / width          # a flat row does not depend on s
        dlo = xp.sum(ds * (s_hat - 1), axis=-1, keepdims=True)
        dhi = -xp.sum(ds * s_hat, axis=-1, keepdims=True)
        return ds + share(dlo, s == lo, ties) + share(dhi, s == hi, ties)

    return s_hat, flat, back


def normalize_rows(x):
    """Eq. 4, each row divided by its sum; a row that sums to 0 stays as it is.      x (...,P) -> a, back"""
    xp = array_namespace(x)
    total = xp.sum(x, axis=-1, keepdims=True)
    empty = total == 0
    total = xp.where(empty, 1.0, total)
    a = x / total

    def back(da):
        return xp.where(empty, 0.0, (da - xp.sum(da * a, axis=-1, keepdims=True)) / total)

    return a, back


def share(d, at, ties="share"):
    """Hand an extremum's gradient to the places that tie for it.      d (...,1), at (...,P) bool -> (...,P)"""
    xp = array_namespace(d)
    if ties == "first":
        at = at & (xp.cumulative_sum(xp.astype(at, xp.int32), axis=-1) == 1)
    at = xp.astype(at, d.dtype)
    return d * at / xp.sum(at, axis=-1, keepdims=True)


def check_options(**options: str) -> None:
    """Raise ValueError that names the option, its choices and what came."""
    for name, value in options.items():
        if value not in CHOICES[name]:
            raise ValueError(f"{name}: expected one of {', '.join(CHOICES[name])}; got {value!r}")


def check_shapes(t: Array, v: Array, mask: Array | None) -> None:
    """ValueError that names the first of v, t, mask that is not (B,P,D), (B,L,D), (B,L) bool."""
    check_arrays(v=v, t=t, **({} if mask is None else {"mask": mask}))
    if v.ndim != 3 or 0 in v.shape:
        raise ValueError(f"v: expected (B,P,D) with at least one of each, got {tuple(v.shape)}")
    batch, _, width = v.shape
    if t.ndim != 3 or (t.shape[0], t.shape[2]) != (batch, width) or 0 in t.shape:
        raise ValueError(f"t: expected (B,L,D) with B={batch}, D={width}, got {tuple(t.shape)}")
    if mask is None:
        return
    if tuple(mask.shape) != tuple(t.shape[:2]):
        raise ValueError(f"mask: expected (B,L) with B={batch}, L={t.shape[1]}, got {tuple(mask.shape)}")
    if mask.dtype != array_namespace(mask).bool:
        raise ValueError(f"mask: expected bool, true = real token, got {mask.dtype}")


def check_finite(what: str, x: Array, **inputs: Array) -> None:
    """ArithmeticError that says which input is to blame, if x (of any shape) holds NaN or infinity."""
    xp = array_namespace(x)
    if not bool(xp.all(xp.isfinite(x))):
        blame(what, "not finite", x.dtype, inputs)


def check_range(lo, hi, key_t, key_v, **inputs):
    """ArithmeticError unless the rows of s = key_t key_v' have a width that the dtype holds.      lo, hi (B,L,1)

    Beyond the largest number, and below the smallest normal one, eq. 2 would give some other finite answer, and near the
    largest one (above 4e31 in float32) its gradient would.
    """
    xp = array_namespace(lo, hi)
    T = xp.matrix_transpose
    width = hi - lo
    check_finite("similarity", width, **inputs)
    about = xp.finfo(width.dtype)
    if bool(xp.any((width < about.smallest_normal) & (width > 0))):
        blame("similarity", "too small to be told apart", width.dtype, inputs)
    if bool(xp.any(width > about.max * about.eps)):       # its gradient, about 1/width, would be rounded away
        blame("similarity", "too large to have a gradient", width.dtype, inputs)
    none = (hi == 0) & (lo == 0) & xp.any(key_t != 0, axis=-1, keepdims=True)
    if bool(xp.any(none)):                                # truly 0, or did the products vanish?
        unit_t, unit_v = (x / xp.where(top == 0, 1.0, top) for x, top in (
            (key_t, xp.max(xp.abs(key_t), axis=-1, keepdims=True)), (key_v, xp.max(xp.abs(key_v)))))
        s = unit_t @ T(unit_v)
        if bool(xp.any(none & (xp.max(s, axis=-1, keepdims=True) != xp.min(s, axis=-1, keepdims=True)))):
            blame("similarity", "0 where it is not", width.dtype, inputs)


def blame(what, how, dtype, inputs):
    """Raise ArithmeticError with the input that is not finite, or else with how large each of them is."""
    for name, x in inputs.items():
        xp = array_namespace(x)
        if bad := int(xp.sum(xp.astype(~xp.isfinite(x), xp.int64))):
            raise ArithmeticError(f"{what} is {how}: {bad} of the {size(x)} numbers of {name} are NaN or infinite")
    largest = ", ".join(f"|{name}| up to {float(array_namespace(x).max(array_namespace(x).abs(x))):.3g}"
                        for name, x in inputs.items())
    raise ArithmeticError(f"{what} is {how}: it left the range of {dtype_name(dtype)}{'; ' * bool(largest)}{largest}")


def _same(d):
    return d
