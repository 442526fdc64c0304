"""The checks behind the exercises: check("00.1", yours) says "Right." or what is wrong.

Every check compares with sparc_ref or with differences, on random inputs, and knows the mistakes that are made most often.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
from array_api_compat import device

from sparc_ref import align_patches, fine_grained_loss, ops
from sparc_ref.backend import to_numpy
from sparc_ref.objectives.filip import filip_scores

CHECKS: dict[str, Callable[[Callable], str]] = {}
RIGHT = "Right."


def check(number: str, yours: Callable) -> str:
    """What is said of your answer to exercise `number`."""
    try:
        return CHECKS[number](yours)
    except NotYet:
        return "Nothing is returned yet. Your turn."
    except Exception as error:
        return f"It stops with {type(error).__name__}: {error}"


class NotYet(Exception):
    """The exercise still returns None."""


def exercise(number):
    def add(f):
        CHECKS[number] = f
        return f

    return add


def given(x: Any) -> Any:
    """x, or NotYet where nothing was returned."""
    if x is None or (isinstance(x, tuple) and any(y is None for y in x)):
        raise NotYet
    return x


def same(x, y):
    x, y = np.asarray(x, float), np.asarray(y, float)
    return x.shape == y.shape and np.allclose(x, y, rtol=1e-6, atol=1e-9)


def verdict(yours, right, wrong=()):
    """Compare with the right answer, then with known wrong ones: (answer, what to say)."""
    yours, right = np.asarray(given(yours), float), np.asarray(right, float)
    if same(yours, right):
        return RIGHT
    if yours.shape != right.shape:
        return f"Expected the shape {right.shape}, got {yours.shape}."
    if not np.all(np.isfinite(yours)):
        return "There is NaN or infinity in it."
    for answer, words in wrong:
        if same(yours, answer):
            return words
    return f"Not yet: the largest difference is {np.abs(yours - right).max():.3g}, the largest entry {np.abs(right).max():.3g}."


@exercise("00.1")
def _weights_of_a_row(yours):
    """yours(s) -> a; s (P,), eqs. 2-4"""
    rng = np.random.default_rng(1)
    s = rng.standard_normal(6)
    s[1], s[2] = (s.min() + x * (s.max() - s.min()) for x in (0.1, 0.2))  # either side of 1/6: the threshold matters
    a = align_patches(np.ones((1, 1, 1)), s[None, :, None])[1]["weights"][0, 0]
    s_hat = (s - s.min()) / (s.max() - s.min())
    quarter = np.where(s_hat >= 0.25, s_hat, 0)
    said = verdict(yours(s), a, [
        (s_hat, "That is eq. 2 alone."),
        (s_hat / s_hat.sum(), "The threshold is missing: eq. 3."),
        (np.where(s_hat >= 1 / 6, s_hat, 0), "The row does not sum to 1 yet: eq. 4."),
        (quarter / quarter.sum(), "sigma is 1/P for this P, not 1/4 for ever."),
        (np.exp(s) / np.exp(s).sum(), "That is a softmax. SPARC stretches and cuts."),
        (s / s.sum(), "Divided by the sum without stretching first: eq. 2."),
    ])
    edge = np.array([1.0, 0, 2, 4])                                       # the first is 1/4 after eq. 2, exactly
    return said if said != RIGHT else verdict(yours(edge), edge / 7, [
        (np.array([0, 0, 2, 4]) / 6, "What equals sigma is kept: eq. 3 says at least."),
    ])


@exercise("00.2")
def _loss_from_logits(yours):
    """yours(z) -> loss; z (L,L) logits of one caption, eq. 6"""
    z = np.random.default_rng(2).standard_normal((3, 3))
    rows = (np.log(np.exp(z).sum(1)) - np.diag(z)).mean()
    columns = (np.log(np.exp(z).sum(0)) - np.diag(z)).mean()
    return verdict(yours(z), (rows + columns) / 2, [
        (rows, "Rows only: the word must find its group too (columns)."),
        (columns, "Columns only: the group must find its word too (rows)."),
        (rows + columns, "Half of it: eq. 6 has 1/2."),
        (3 * (rows + columns) / 2, "A mean over the words, not their sum: 1/L."),
        (-(rows + columns) / 2, "The sign: a cross-entropy is minus a log."),
    ])


@exercise("01.1")
def _log_softmax_back(yours):
    """yours(z, dy) -> dz; y = log softmax of each row, z and dy (N,K)"""
    rng = np.random.default_rng(3)
    z, dy = rng.standard_normal((4, 5)), rng.standard_normal((4, 5))
    p = ops.softmax(z)[0]
    return verdict(yours(z, dy), ops.log_softmax(z)[1](dy), [
        (ops.softmax(z)[1](dy), "That is softmax's own gradient; here y is its log."),
        (dy - p, "Right only where the entries of each row of dy sum to 1: the sum belongs to p."),
        (dy - p * dy, "Each entry of z moves every entry of y: a sum over the row of dy is missing."),
        (dy - p * dy.sum(1, keepdims=True) / 5, "A sum over the row, not a mean."),
        (dy - p * dy.sum(), "The sum runs over the row alone, not over the batch."),
        (dy + p * dy.sum(1, keepdims=True), "The sign: the log of the sum is subtracted."),
    ])


@exercise("01.2")
def _cosine_back(yours):
    """yours(x, y) -> dx; the gradient of phi(x,y), x and y (D,)"""
    rng = np.random.default_rng(4)
    x, y = 3 * rng.standard_normal(4), rng.standard_normal(4)
    back = ops.l2_normalize(x)[1]
    y_hat = y / np.linalg.norm(y)
    right = back(y_hat)
    return verdict(yours(x, y), right, [
        (right * np.linalg.norm(x), "Divide by |x|: a long vector turns less."),
        (y_hat / np.linalg.norm(x), "The part along x must go: moving x along itself does not change a cosine."),
        (back(y), "y has a length too: use y / |y|."),
        (ops.l2_normalize(y)[1](x / np.linalg.norm(x)), "That is the gradient with respect to y; x is asked for."),
    ])


@exercise("03.1")
def _global_dlogits(yours):
    """yours(z) -> dz; z (B,B) logits of eq. 1"""
    rng = np.random.default_rng(5)
    z = 2 * rng.standard_normal((4, 4))
    p, q = ops.softmax(z)[0], ops.softmax(z.T)[0].T
    eye = np.eye(4)
    right = (p + q - 2 * eye) / 8
    return verdict(yours(z), right, [
        ((p - eye) / 4, "Rows only: captions look for their picture too."),
        ((q - eye) / 4, "Columns only: pictures look for their caption too."),
        ((p - eye) / 8, "Rows only: captions look for their picture too."),
        ((p + q - eye) / 8, "The right answer is subtracted in both directions: twice."),
        (p + q - 2 * eye, "The mean is over B pictures and 2 directions."),
        ((p + q - 2 * eye) / 4, "One half is missing: eq. 1 has 1/2 and the mean over B."),
        ((p + q - 2 * eye) / 2, "The mean over the B pictures is missing."),
        (-right, "The sign: the loss falls where the right logit grows."),
        ((p + ops.softmax(z.T)[0] - 2 * eye) / 8, "The second direction comes back transposed."),
    ])


@exercise("03.2")
def _best_global_loss(yours):
    """yours(B, tau) -> the loss with cosine 1 on the diagonal and 0 elsewhere"""
    pairs = ((8, 0.2), (64, 0.1), (1000, 0.07))
    found = [given(yours(B, tau)) for B, tau in pairs]
    return verdict(found, [np.log1p((B - 1) * np.exp(-1 / tau)) for B, tau in pairs], [
        ([0, 0, 0], "Not 0: cosines end at 1, so the logits end at 1/tau."),
        ([np.log1p(B * np.exp(-1 / tau)) for B, tau in pairs], "There are B - 1 wrong answers, not B."),
        ([np.log1p((B - 1) * np.exp(-tau)) for B, tau in pairs], "Logits are cosines divided by tau."),
        ([np.log1p((B - 1) * np.exp(-2 / tau)) for B, tau in pairs], "Wrong pairs have cosine 0 here, not -1."),
        ([np.log(B) for B, _ in pairs], "That is guessing: all cosines equal. Here the right ones are 1."),
        ([2 * np.log1p((B - 1) * np.exp(-1 / tau)) for B, tau in pairs], "Two directions, and their mean: 1/2."),
    ])


@exercise("04.1")
def _min_max_back(yours):
    """yours(s, ds_hat) -> ds; eq. 2 of one row without ties, s and ds_hat (P,)"""
    rng = np.random.default_rng(6)
    s, d = rng.standard_normal(6), rng.standard_normal(6)
    low, high = s.argmin(), s.argmax()
    width = s[high] - s[low]
    s_hat = (s - s[low]) / width
    plain = d / width
    only_low, only_high = plain.copy(), plain.copy()
    only_low[low] += (plain * (s_hat - 1)).sum()
    only_high[high] -= (plain * s_hat).sum()
    shifted = only_low.copy()
    shifted[low] = plain[low] - plain.sum()
    right = only_low + only_high - plain
    return verdict(yours(s, d), right, [
        (plain, "Minimum and maximum depend on s too: their gradients are missing."),
        (only_low, "The way through the maximum is missing."),
        (only_high, "The way through the minimum is missing."),
        (shifted, "The minimum stands in the numerator and in the range: only the numerator's is here; the maximum's is gone"),
        (2 * only_low - right, "The sign at the maximum: a larger range makes every entry smaller."),
        (2 * only_high - right, "The sign at the minimum."),
    ])


@exercise("04.2")
def _division_free(yours):
    """yours(t, v, sigma) -> g (D,), parallel to c; one token t (D,), patches v (P,D)"""
    sigma = 0.3
    for seed in (7, 8, 9):                                                # ranges far from 1, either side
        rng = np.random.default_rng(seed)
        t, v = (0.2, 3, 10)[seed - 7] * rng.standard_normal(3), rng.standard_normal((8, 3))
        g = np.asarray(given(yours(t, v, sigma)), float)
        if g.shape != (3,):
            return f"Expected the shape (3,), got {g.shape}."
        c, s = align_patches(t[None, None], v[None], sigma=sigma)[0][0, 0], v @ t
        above = s - s.min()
        said = verdict(unit(g), unit(c), [
            (unit(above @ v), "The threshold is missing."),
            (unit((above * (above >= sigma)) @ v), "sigma is a share of the row's range: compare with sigma (max - min)."),
            (unit((s * (above >= sigma * above.max())) @ v), "The minimum must be subtracted before patches are weighted."),
            (-unit(c), "It points the other way."),
        ])
        if said != RIGHT:
            return said
    return RIGHT


def unit(x):
    return x / max(np.linalg.norm(x), 1e-300)


@exercise("05.1")
def _patches_used(yours):
    """yours(a) -> a number; a (P,) sums to 1"""
    rows = [np.full(4, 0.25), np.array([1.0, 0, 0, 0]), np.array([0.5, 0.25, 0.25, 0])]
    found = [given(yours(a)) for a in rows]
    return verdict(found, [1 / (a * a).sum() for a in rows], [
        ([(a > 0).sum() for a in rows], "That counts a patch of weight 0.001 like one of 0.9."),
        ([(a * a).sum() for a in rows], "The other way up: one patch alone should give 1, four equal ones 4."),
        ([1 / a.max() for a in rows], "The largest weight alone says nothing of the others."),
        ([np.exp(-np.sum(a[a > 0] * np.log(a[a > 0]))) for a in rows],
         "The exponential of the entropy: a good measure, not this one."),
    ])


@exercise("05.2")
def _factor_for_four(yours):
    """yours(s) -> k, so that softmax(k s) uses 4 patches"""
    said = []
    for seed, scale in product((1, 2), (0.01, 1.0, 30.0)):                # the same rows at three scales
        s = scale * np.random.default_rng(seed).standard_normal(16)
        k = float(given(yours(s)))
        a = ops.softmax(k * s)[0]
        used = 1 / (a * a).sum()
        if abs(used - 4) > 0.01:
            said.append(f"similarities of spread {s.std():.3g}: your {k:.4g} uses {used:.2f} patches")
    return RIGHT if not said else "; ".join(said) + "."


@exercise("06.1")
def _masked_loss(yours):
    """yours(z, mask) -> the fine-grained loss of one caption; z (L,L), mask (L,) bool"""
    rng = np.random.default_rng(8)
    z, mask = 2 * rng.standard_normal((5, 5)), np.array([True, True, True, False, False])

    def loss(z):
        rows, columns = (np.log(np.exp(x).sum(1)) - np.diag(x) for x in (z, z.T))
        return rows + columns

    real = z[:3, :3]
    gone = np.where(mask, z, -1e9)                                        # columns of padding
    filled = np.where(mask[:, None] & mask, z, 0)
    half = np.log(np.exp(gone).sum(1)) + np.log(np.exp(z).sum(0)) - 2 * np.diag(z)
    said = verdict(yours(z, mask), loss(real).mean() / 2, [
        (loss(z).mean() / 2, "The mask is not used."),
        (loss(z)[:3].mean() / 2, "Padding still competes as a wrong answer: its columns must go, before exp."),
        (loss(real).sum() / 10, "Divided by 5: the mean is over real tokens."),
        (loss(filled)[:3].mean() / 2, "A logit of 0 is an answer like any other: e^0 = 1. Leave padding out."),
        (loss(filled * 1.0)[:3].sum() / 10, "A logit of 0 is an answer like any other, and the mean is over real tokens."),
        (loss(real).mean(), "Two directions, and their mean: 1/2."),
        (half[:3].mean() / 2, "Columns of padding are gone; but in the other direction the rows are the answers."),
        ((np.log(np.exp(real).sum(1)) - np.diag(real)).mean(), "One direction only."),
    ])
    hole = np.array([True, False, True, True, False])                     # no caption looks like this, but the mask says so
    return said if said != RIGHT else verdict(yours(z, hole), loss(z[hole][:, hole]).mean() / 2, [
        (loss(real).mean() / 2, "The mask says which places are real; here not the first three."),
    ])


@exercise("06.2")
def _token_shares(yours):
    """yours(mask, reduction) -> (B,L); what each token's loss is multiplied with"""
    mask = np.array([[True] * 4, [True, False, False, False], [True, True, False, False]])
    real = mask.astype(float)
    sample, token = real / real.sum(1, keepdims=True) / 3, real / real.sum()
    found = [np.asarray(given(yours(mask, reduction)), float) for reduction in ("sample", "token")]
    return verdict(np.stack(found), np.stack([sample, token]), [
        (np.stack([token, sample]), "The other way round."),
        (np.stack([real / 12, token]), "\"sample\": every caption counts alike, its own tokens share; padding is no token."),
        (np.stack([real / 12, real / 12]), "Padding is counted in both."),
        (np.stack([3 * sample, token]), "\"sample\": the mean over captions is missing, 1/B."),
        (np.stack([sample, token]) / 2, "The 1/2 belongs to a token's loss, the mean of two directions, not to its share."),
        (np.stack([sample, real / 12]), "\"token\": divide by the number of real tokens, not of all places."),
        (np.stack([sample, sample]), "Both are \"sample\"."),
        (np.stack([token, token]), "Both are \"token\"."),
    ])


@exercise("02.1")
def _residual_back(yours):
    """yours(dy, back_f) -> dx; y = x + f(x)"""
    rng = np.random.default_rng(10)
    x, weight, dy = rng.standard_normal((4, 3)), rng.standard_normal((3, 3)), rng.standard_normal((4, 3))
    back_f = ops.linear(x, weight)[1]
    inner = back_f(dy)[0]
    return verdict(yours(dy, lambda d: back_f(d)[0]), dy + inner, [
        (inner, "x also reaches y directly, around f: that way has slope 1."),
        (dy, "x also reaches y through f."),
        (back_f(inner + dy)[0], "One addition is enough; f is passed once."),
        (dy * inner, "The gradients of the two ways are added, not multiplied."),
    ])


@exercise("02.2")
def _one_head(yours):
    """yours(q, k, v, mask) -> (L,C); one head of attention, q, k, v (L,C), mask (L,)"""
    rng = np.random.default_rng(11)
    q, k, v = (rng.standard_normal((5, 4)) for _ in range(3))
    mask = np.array([True, True, True, False, True])
    right = ops.attention(np.concatenate([q, k, v], axis=1)[None], 1, mask[None])[0][0]
    unmasked = ops.attention(np.concatenate([q, k, v], axis=1)[None], 1)[0][0]
    unscaled = ops.softmax(q @ k.T, mask)[0] @ v
    scores = q @ k.T / 2
    plain = ops.softmax(scores)[0]
    return verdict(yours(q, k, v, mask), right, [
        (unmasked, "Padding is looked at: leave it out as a key, before exp."),
        (unscaled, "The scores are divided by the square root of the width."),
        (ops.softmax(q @ k.T)[0] @ v, "No mask, and the scores are not divided by the square root of the width."),
        (ops.softmax(np.where(mask, q @ k.T / 2, 0))[0] @ v, "A score of 0 still gets weight: e^0 = 1."),
        (np.where(mask[:, None], right, 0), "Padding is left out as a key; nobody minds what it computes as a query."),
        (np.where(mask[:, None], unmasked, 0), "The mask is on the queries (rows); padding must go as a key (columns)."),
        (np.where(mask, plain, 0) @ v, "The rest no longer sums to 1: leave padding out before the softmax."),
        (ops.softmax(scores.T)[0].T @ v, "The softmax runs over the keys: each row sums to 1. And the mask is missing."),
        (ops.softmax(np.where(mask[:, None], scores, -1e9).T)[0].T @ v, "The softmax runs over the keys: each row sums to 1."),
        (ops.softmax(np.where(mask, scores, -1e9).T)[0].T @ v, "The softmax runs over the keys: each row sums to 1."),
    ])


@exercise("09.1")
def _rounded(yours):
    """yours(x, bits) -> x with so many bits in all, the leading one included, to nearest"""
    x = np.random.default_rng(12).standard_normal(1000) * 10.0 ** np.arange(-5, 5).repeat(100)
    m, e = np.frexp(x)
    found = np.stack([np.asarray(given(yours(x, bits)), float) for bits in (8, 11, 24)])
    right = np.stack([np.ldexp(np.round(np.ldexp(m, bits)), e - bits) for bits in (8, 11, 24)])
    more, fewer = (np.stack([np.ldexp(np.round(np.ldexp(m, b)), e - b) for b in bits]) for bits in ((9, 12, 25), (7, 10, 23)))
    cut, floor = (np.stack([np.ldexp(f(np.ldexp(m, bits)), e - bits) for bits in (8, 11, 24)]) for f in (np.trunc, np.floor))
    if found.shape == right.shape and np.array_equal(found, right):
        return RIGHT
    for answer, words in ((more, "One bit too many: frexp's fraction lies in [1/2, 1)."), (fewer, "One bit too few."),
                          (cut, "Cut off; the nearest number is wanted."),
                          (floor, "Rounded down; the nearest number is wanted.")):
        if found.shape == right.shape and np.array_equal(found, answer):
            return words
    return f"Not yet: {int((found != right).sum())} of {right.size} numbers differ."


class Float32(np.ndarray):
    """float32 numbers that refuse to become wider."""

    def astype(self, dtype, *more, **named):
        if np.dtype(dtype) != np.float32:
            raise TypeError(f"float32 alone, not {np.dtype(dtype)}")
        return super().astype(dtype, *more, **named)

    def sum(self, axis=None, dtype=None, *more, **named):
        return super().sum(axis, np.float32 if dtype is None else self[:1].astype(dtype).dtype, *more, **named)


@exercise("09.2")
def _careful_sum(yours):
    """yours(x) -> the sum of float32 numbers, right to 2 units of rounding, in float32 alone"""
    x = (0.5 + 0.49 * np.random.default_rng(13).random(20000)).astype(np.float32)
    x[0] = 2.0**24                                                        # each of the rest alone is less than half its unit
    total = given(yours(x.view(Float32)))
    if np.asarray(total).dtype != np.float32:
        return f"In float32 alone; this is {np.asarray(total).dtype}."
    off = abs(float(total) - float(x.astype(np.float64).sum())) / float(np.spacing(np.float32(x.astype(np.float64).sum())))
    if off > 2 and total == x.sum():
        return f"Off by {off:.0f} units of rounding; 2 are allowed. That is np.sum's: it adds in pairs, but not from the start."
    return RIGHT if off <= 2 else f"Off by {off:.0f} units of rounding; 2 are allowed."


@exercise("10.1")
def _hiding_batch(yours):
    """yours(seed) -> v (B,P,D), t (B,L,D), mask (B,L): unit patches change nothing, unmasked padding does"""
    for seed in (1, 2):
        v, t, mask = (np.asarray(x) for x in given(yours(seed)))
        if v.ndim != 3 or t.ndim != 3 or mask.shape != t.shape[:2] or len(v) != len(t) or v.shape[2] != t.shape[2]:
            return f"Expected v (B,P,D), t (B,L,D), mask (B,L); got {v.shape}, {t.shape}, {mask.shape}."
        if mask.dtype != bool or not mask.any(1).all():
            return "The mask: bool, and at least one real token in every caption."
        if len(v) < 2 or v.shape[1] < 2 or mask.sum(1).max() < 2:
            return "Two pictures, two patches and a caption of two words are the least; else there is hardly a loss."
        right = fine_grained_loss(v, t, mask, 1.0)[0]
        if np.isclose(right, 0, atol=1e-9):
            return "The loss is 0 here whatever one does."
        unit = v / np.linalg.norm(v, axis=-1, keepdims=True)
        a = align_patches(t, unit, mask)[1]["weights"]    # weights by unit patches, patches averaged as they are
        if not np.isclose(_padded_loss(a @ v, t, mask, mask), right, rtol=1e-9):
            return "The mistake with unit patches still shows: are all patches of one length?"
        if np.isclose(_padded_loss(align_patches(t, v)[0], t, mask, np.ones_like(mask)), right, rtol=1e-3):
            return "The mistake with padding does not show: is there padding, and does it differ from the words?"
    return RIGHT


def _padded_loss(c, t, mask, competing):
    """Eq. 6 from groups, where `competing` (B,L) tokens are answers."""
    z = np.exp(1.0) * ops.l2_normalize(c)[0] @ np.swapaxes(ops.l2_normalize(t)[0], 1, 2)
    each = sum(-np.diagonal(ops.log_softmax(x, competing[:, None, :])[0], axis1=1, axis2=2) for x in (z, np.swapaxes(z, 1, 2)))
    return float((np.where(mask, each, 0).sum(1) / mask.sum(1)).mean() / 2)


@exercise("10.2")
def _safe_weights(yours):
    """yours(s) -> a; s (L,P) with flat rows"""
    s = np.random.default_rng(14).standard_normal((4, 5))
    s[1], s[3] = 0.7, 0.0
    with np.errstate(all="ignore"):
        a = given(yours(s))
    right = align_patches(np.eye(4)[None], s.T[None])[1]["weights"][0]  # words are unit vectors, so similarities are s
    zero = np.where(np.arange(4)[:, None] % 2 == 1, 0, right)
    if np.shape(a) == right.shape and np.isnan(np.asarray(a, float)[[1, 3]]).any():
        return "0/0 where a row is flat: NaN."
    with np.errstate(all="ignore"):
        all_alike = s / s.sum(1, keepdims=True)
    return verdict(a, right, [
        (zero, "A flat row gets no weight at all here, which is what an epsilon gives; it should share it evenly."),
        (np.where(right == 0, 0.0, all_alike), "Divided by the sum without eq. 2."),
    ])


@exercise("10.3")
def _name_it(yours):
    """yours(z, value) -> "right" | "rows only" | "sum" | "no half" """
    rng = np.random.default_rng(15)
    for _ in range(3):
        z = 2 * rng.standard_normal((4, 4))
        rows, columns = (np.log(np.exp(x).sum(1)) - np.diag(x) for x in (z, z.T))
        both = (rows + columns).mean()
        for name, value in (("right", both / 2), ("rows only", rows.mean()), ("sum", 2 * both), ("no half", both)):
            said = given(yours(z, float(value)))
            if said not in ("right", "rows only", "sum", "no half"):
                return f"Expected one of right, rows only, sum, no half; got {said!r}."
            if said != name:
                return f"For a loss of {value:.4f} you said {said!r}; it is {name!r}."
    return RIGHT


@exercise("07.1")
def _grounding_gap(yours):
    """yours(loss, v, t, mask, order) -> loss with other pictures minus loss with the true ones"""
    rng = np.random.default_rng(16)
    v, t = rng.standard_normal((3, 6, 4)), rng.standard_normal((3, 4, 4))
    mask, order = np.arange(4) < np.array([[4], [2], [3]]), np.array([1, 2, 0])

    def loss(v, t, mask):
        return float(fine_grained_loss(v, t, mask, 1.0)[0])

    true, other = loss(v, t, mask), loss(v[order], t, mask)
    return verdict(yours(loss, v, t, mask, order), other - true, [
        (true - other, "The other way round: shuffled minus true, so that a model that looks has a gap above 0."),
        (other, "That is the loss with other pictures; the gap is how much worse it is than with the true ones."),
        (0.0, "Pictures and captions moved together: every caption kept its picture."),
        (loss(v, t[order], mask) - true, "The captions moved and their masks did not."),
        (other / true, "A difference, in nats, not a ratio."),
    ])


@exercise("07.2")
def _pointing(yours):
    """yours(weights, inside) -> a number; both (L,P)"""
    rng = np.random.default_rng(17)
    weights = ops.softmax(2 * rng.standard_normal((5, 9)))[0]
    inside = np.round(rng.random((5, 9)), 1)
    top = weights.argmax(1)
    return verdict(yours(weights, inside), inside[np.arange(5), top].mean(), [
        ((weights * inside).sum(1).mean(), "That is mass, the share of all weight inside. Pointing asks for the top patch."),
        ((inside[np.arange(5), top] > 0.5).mean(), "A patch half inside counts half."),
        (inside[np.arange(5), top].sum(), "The mean over words, not their sum."),
        (inside[:, weights.mean(0).argmax()].mean(), "Each word has a top patch of its own: the maximum is along patches."),
        ((top == inside.argmax(1)).mean(), "Any patch inside the region is right, not only the most covered one."),
    ])


@exercise("07.3")
def _guessing(yours):
    """yours(lengths) -> eq. 6 of equal logits"""
    lengths = np.array([2, 5, 3, 1])
    return verdict(yours(lengths), np.log(lengths).mean(), [
        (np.log(lengths.mean()), "The mean of the logarithms, not the logarithm of the mean."),
        (2 * np.log(lengths).mean(), "Two directions, and their mean: 1/2."),
        (np.log(lengths).sum(), "The mean over captions, not the sum."),
        ((lengths * np.log(lengths)).sum() / lengths.sum(), "That counts every token alike; eq. 6 counts every caption alike."),
        (np.log(4), "That is the global loss's guess, log B; here the wrong answers are the caption's own."),
    ])


@exercise("08.1")
def _late_interaction(yours):
    """yours(v, t) -> FILIP's score of a picture that asks; v (P,D), t (L,D)"""
    rng = np.random.default_rng(18)
    v, t = 3 * rng.standard_normal((6, 4)), rng.standard_normal((3, 4))
    cosine = ops.l2_normalize(v)[0] @ ops.l2_normalize(t)[0].T
    right = filip_scores({}, v[None], t[None], np.ones((1, 3), bool), v[:1], t[:1])[0][0, 0]
    return verdict(yours(v, t), right, [
        (cosine.max(0).mean(), "That is the caption asking: the best patch of each word."),
        ((v @ t.T).max(1).mean(), "By cosine: patches and words are brought to length 1 first."),
        (cosine.max(1).sum(), "The mean over patches, not their sum."),
        (cosine.max(), "The best pair of all; each patch has a best word of its own."),
        (cosine.mean(), "The mean of all pairs is CLIP's idea: the best word of each patch, then the mean."),
    ])


@exercise("08.2")
def _nearly_a_mean(yours):
    """yours(k) -> (largest factor between two weights at k, the k for a factor of 1000)"""
    return verdict(yours(1.5), [np.exp(3.0), np.log(1000) / 2], [
        ([np.exp(1.5), np.log(1000)], "Cosines run from -1 to 1: the difference is 2."),
        ([np.exp(3.0), np.log(1000)], "The factor is right. Now solve it for k."),
        ([3.0, 500.0], "Softmax takes the exponential."),
    ])


@exercise("08.3")
def _batch_where_equal(yours):
    """yours(tower, L, P, D) -> (batch where every pair costs as much as the tower, the same inside the pair)"""
    tower, L, P, D = 2e10, 55, 196, 512
    return verdict([min(float(x), 1e99) for x in given(yours(tower, L, P, D))], [tower / (2 * L * P * D), 1e99], [
        ([tower / (L * P * D), 1e99], "Both directions: 2 B L P D."),
        ([tower / (2 * L * P * D), tower / (2 * L * P * D + L * L * D)], "Inside the pair there is no B: it never catches up."),
    ])


def _foreign(x):
    """x in a library that has the standard and no more, on a device that is not the CPU; in torch where that is not there."""
    try:
        import array_api_strict
    except ImportError:
        import torch

        return torch.tensor(x)
    return array_api_strict.asarray(x, device=array_api_strict.Device("device1"))


def _anywhere(yours, x, right, wrong):
    """The verdict on NumPy, then on a library that is not NumPy."""
    said = verdict(yours(x), right, wrong)
    if said != RIGHT:
        return said
    there = _foreign(x)
    y = given(yours(there))
    if type(y) is not type(there):
        return f"Right for NumPy. An array of {type(there).__module__} came back as one of {type(y).__module__}."
    if device(y) != device(there):
        return f"Right for NumPy. An array on {device(there)} came back on {device(y)}."
    if y.dtype != there.dtype:
        return f"Right for NumPy. {there.dtype} came back as {y.dtype}."
    return verdict(to_numpy(y), right)


@exercise("11.1")
def _centred(yours):
    """yours(x) -> rows centred, then divided by their largest absolute value; any library"""
    x = np.random.default_rng(19).standard_normal((3, 5))
    y = x - x.mean(1, keepdims=True)
    return _anywhere(yours, x, y / np.abs(y).max(1, keepdims=True), [
        (y, "Centred, and not divided yet."),
        (y / y.max(1, keepdims=True), "By the largest absolute value: the sizes, without their signs."),
        (y / np.abs(x).max(1, keepdims=True), "The largest value after centring, not before."),
        ((x - x.mean(0)) / np.abs(x - x.mean(0)).max(0), "Rows, not columns."),
    ])


@exercise("11.2")
def _own_places(yours):
    """yours(z) -> the identity of z's library, dtype and device"""
    z = np.random.default_rng(20).standard_normal((4, 4)).astype(np.float32)
    return _anywhere(yours, z, np.eye(4), [(np.ones((4, 4)), "Ones on the diagonal alone.")])


@exercise("12.1")
def _rank_loss(yours):
    """yours(rows, columns, start, W) -> a rank's loss, whose mean over ranks is eq. 1"""
    z = 2 * np.random.default_rng(21).standard_normal((6, 6))
    each = -sum(np.diag(ops.log_softmax(x)[0]) for x in (z, z.T))  # (B,)
    mine = slice(4, 6)
    said = yours(z[mine], z.T[mine], 4, 3)
    return verdict(said, each[mine].sum() * 3 / 12, [
        (each[mine].sum() / 12, "The mean over ranks divides by W once more; that makes it W times too small."),
        (each[mine].sum() / 4 * 3, "Divided by b: that mean is W times too large; the mean over ranks is taken outside."),
        (each.mean() / 2, "That is the batch's loss; from these rows alone it cannot be known."),
        (_first_places(z[mine], z.T[mine], 0), "The right answer of row i stands at start + i, not at i."),
        (each[mine].sum() * 3 / 6, "Two directions, and their mean: 1/2."),
    ])


def _first_places(rows, columns, start):
    """Exercise 12.1 with the right answers from `start` on."""
    at = np.arange(len(rows)), start + np.arange(len(rows))
    each = -ops.log_softmax(rows)[0][at] - ops.log_softmax(columns)[0][at]
    return each.sum() * 3 / 12


@exercise("12.2")
def _days(yours):
    """yours(flops, gpus, updates, peak, share) -> days"""
    right = 2e12 * 1000 / (1e14 * 0.5) / 86400
    return verdict(yours(2e12, 8, 1000, 1e14, 0.5), right, [
        (right * 86400, "Those are seconds."),
        (right * 24, "Those are hours."),
        (right / 8, "The operations are those of one GPU already: all work at the same time."),
        (right * 8, "All GPUs work at the same time; do not add up their operations."),
        (right * 0.5, "A share of the peak is reached, so that it takes longer."),
        (right * 0.25, "Divide by the share: it takes longer, not shorter."),
    ])


@exercise("12.3")
def _logit_bytes(yours):
    """yours(B, W) -> bytes of all logits, of own rows and columns"""
    B, W = 4096, 16
    return verdict(yours(B, W), [4 * B * B, 8 * B * B // W], [
        ([B * B, 2 * B * B // W], "Numbers, not bytes: float32 has four."),
        ([4 * B * B, 4 * B * B // W], "Rows and columns: two matrices of (b,B)."),
        ([4 * B * B, 8 * B * B // W - 4 * (B // W) ** 2], "As two matrices: the corner of own with own is in both."),
        ([4 * B * B, 4 * (B // W) ** 2], "Its own pictures meet all captions, not its own alone."),
        ([4 * B * B, 8 * (B // W) ** 2], "Its own pictures meet all captions, not its own alone."),
    ])
