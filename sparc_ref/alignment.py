"""SPARC's alignment: which patches does each token mean?  Eqs. 2-5, forward and gradient in one place.

B batch, L tokens, P patches, D joint width.  t (B,L,D) tokens, v (B,P,D) patches.  d<name> is dLoss/d<name>.
"""

from collections.abc import Callable

from array_api_compat import array_namespace

from sparc_ref import ops
from sparc_ref.backend import Array

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
    Returns c, trace, back; back(dc) -> dt, dv.  Raises ValueError for an unknown option and for sigma outside [0, 1].
    """
    check_options(similarity=similarity, align=align, threshold_on=threshold_on, flat=flat, ties=ties)
    xp = array_namespace(t, v)
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
        a, back_a = ops.softmax(s)
        stages = {}
    else:
        a, stages, back_a = sparse_weights(s, sigma, threshold_on, flat, ties, mask)
    if mask is not None:
        a = xp.where(mask[..., None], a, 0.0)
    c = a @ v                                             # (B,L,D)

    def back(dc):
        da = dc @ T(v)                                    # (B,L,P)
        if mask is not None:
            da = xp.where(mask[..., None], da, 0.0)
        ds = back_a(da)
        dt = back_key_t(ds @ key_v)
        if mask is not None:
            dt = xp.where(mask[..., None], dt, 0.0)
        return dt, back_key_v(T(ds) @ key_t) + T(a) @ dc  # v is used twice, as key and as value

    return c, {"similarity": s, **stages, "weights": a}, back


def sparse_weights(s, sigma, threshold_on, flat, ties, mask=None):
    """Eqs. 2-4.      s (B,L,P) -> a (B,L,P), {minmax, sparse}, back; back(da) -> ds"""
    xp = array_namespace(s)
    s_hat, flat_rows, back_minmax = min_max(s, ties)
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

    def back(da):
        return back_minmax(back_first(xp.where(keep, back_second(da), 0.0)))

    return a, {"minmax": s_hat, "sparse": s_til}, back


def min_max(s, ties="share"):
    """Eq. 2, each row stretched to [0, 1]; a flat row becomes ones.      s (...,P) -> s_hat, flat (...,1) bool, back"""
    xp = array_namespace(s)
    lo = xp.min(s, axis=-1, keepdims=True)
    hi = xp.max(s, axis=-1, keepdims=True)
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


def _same(d):
    return d
