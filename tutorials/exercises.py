"""The checks behind the exercises: check("00.1", yours) says "Right." or what is wrong.

Every check compares with sparc_ref or with differences, on random inputs, and knows the mistakes that are made most often.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from sparc_ref import align_patches

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
    s[1] = s.min() + 0.1 * (s.max() - s.min())             # below 1/6: the threshold matters
    a = align_patches(np.ones((1, 1, 1)), s[None, :, None])[1]["weights"][0, 0]
    s_hat = (s - s.min()) / (s.max() - s.min())
    quarter = np.where(s_hat >= 0.25, s_hat, 0)
    return verdict(yours(s), a, [
        (s_hat, "That is eq. 2 alone."),
        (s_hat / s_hat.sum(), "The threshold is missing: eq. 3."),
        (np.where(s_hat >= 1 / 6, s_hat, 0), "The row does not sum to 1 yet: eq. 4."),
        (quarter / quarter.sum(), "sigma is 1/P for this P, not 1/4 for ever."),
        (np.exp(s) / np.exp(s).sum(), "That is a softmax. SPARC stretches and cuts."),
        (s / s.sum(), "Divided by the sum without stretching first: eq. 2."),
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
