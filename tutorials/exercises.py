"""The checks behind the exercises: check("00.1", yours) says "Right." or what is wrong.

Every check compares with sparc_ref or with differences, on random inputs, and knows the mistakes that are made most often.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np

from sparc_ref import align_patches, ops

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

