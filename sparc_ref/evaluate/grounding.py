"""The grounding gap: does the fine-grained loss look at the picture at all?

Its negatives are other tokens of the same caption, so position codes alone can solve it. The gap is L_f with the
pictures shuffled between captions minus L_f with the true ones: 0 means that the picture makes no difference.
"""

from collections.abc import Callable

import numpy as np

from sparc_ref.evaluate.check import booleans, finite


def grounding_gap(
    fine_loss: Callable[[np.ndarray, np.ndarray, np.ndarray], float], v: np.ndarray, t: np.ndarray, mask: np.ndarray,
    rng: np.random.Generator, repeats: int = 4,
) -> dict[str, float]:
    """L_f (shuffled pictures) - L_f (true pictures), nats.           v (N,P,D), t (N,L,D), mask (N,L) bool -> dict

    fine_loss(v, t, mask) -> the loss as a number. repeats: how many shuffles, drawn from rng, are averaged; each is a
    derangement, so that no caption keeps its picture (the rows of v should be different pictures).
    Returns gap, true, shuffled, and shuffled_sd, the standard deviation over the shuffles (left out for one shuffle).
    ValueError: wrong shapes, NaN, fewer than 2 pictures, repeats < 1.
    """
    v = finite("v", v, ("N", "P", "D"))
    t = finite("t", t, (v.shape[0], "L", v.shape[2]))
    mask = booleans("mask", mask, t.shape[:2])
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, got {repeats}")
    true = float(fine_loss(v, t, mask))
    shuffled = [float(fine_loss(v[derangement(v.shape[0], rng)], t, mask)) for _ in range(repeats)]
    mean = float(np.mean(shuffled))
    out = {"gap": mean - true, "true": true, "shuffled": mean}
    return out | ({"shuffled_sd": float(np.std(shuffled, ddof=1))} if repeats > 1 else {})


def derangement(n: int, rng: np.random.Generator) -> np.ndarray:
    """A random permutation that leaves nothing in its place, all equally likely.           -> (n,) int"""
    if n < 2:
        raise ValueError(f"a shuffle in which no caption keeps its picture needs at least 2 pictures, got {n}")
    while True:                                                   # 2.7 tries on average, whatever n
        order = rng.permutation(n)
        if not np.any(order == np.arange(n)):
            return order
