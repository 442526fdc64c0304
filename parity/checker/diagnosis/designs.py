"""Probes that keep all stages but one out of play: one sample, no padding, similarities that are known numbers.

Where one patch resembles a token and all others resemble it equally little, eqs. 2-5 have nothing to decide: c is that patch,
whatever is done to the similarity, its range, its threshold and its weights.  What disagrees there disagrees after eq. 5.
"""

import numpy as np

from parity.checker.probes import WIDTH, Probe

THETA = 1.0


def designed(name, v, t, theta=THETA, shows="") -> Probe:
    """v (P,D), t (N,D) -> a probe of one sample."""
    v, t = np.asarray(v, dtype=np.float64), np.asarray(t, dtype=np.float64)
    pool = np.eye(2, WIDTH)
    return Probe(name, v[None], t[None], np.ones((1, len(t)), dtype=bool), theta, pool[:1], pool[1:], shows, edge=True)


def rotation(seed=7):
    """A rotation of the whole space, fixed."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((WIDTH, WIDTH)))
    return q


def pairs(name, tokens, patches, theta=THETA) -> Probe:
    """Token l is patch l is the l-th axis: cosines are 0 and 1."""
    e = np.eye(max(patches, tokens), WIDTH)
    return designed(name, e[:patches], e[:tokens], theta, "cosines are 0 and 1: cross-entropy and temperature alone")


PAIRS = (pairs("pairs_3", 3, 3), pairs("pairs_5", 5, 5), pairs("pairs_7", 7, 7), pairs("pairs_5_warmer", 5, 5, 0.4))
SPARE = (pairs("spare", 5, 9), pairs("spare_warmer", 5, 9, 0.4))  # and patches that resemble no token


def lengthened(name, turned: bool, lengths: bool) -> Probe:
    """As pairs, in directions that are no axes, or of other lengths."""
    e = np.eye(5, WIDTH) @ (rotation() if turned else np.eye(WIDTH))
    v, t = np.array([[1.0, 1.8, 2.7, 1.5, 1.1], [1.4, 0.8, 0.5, 0.9, 1.3]])[:, :, None] if lengths else (1.0, 1.0)
    return designed(name, v * e, t * e, THETA, "the l2 norm, nothing else")


LENGTHS = (
    lengthened("turned", True, False), lengthened("lengthened", False, True), lengthened("turned_and_lengthened", True, True),
)  # fmt: skip


def equiangular(name, n, rho, theta=THETA) -> Probe:
    """All tokens have cosine rho > -1/(n-1) with each other; patch l is token l."""
    gram = np.full((n, n), rho) + (1 - rho) * np.eye(n)
    e = np.linalg.cholesky(gram) @ rotation()[:n]
    return designed(name, e, e, theta, "cosines between 0 and 1: logits, with weights that are not in question")


def parallel(name, seed, lengths: bool, theta=THETA) -> Probe:
    """All patches point one way: so does every group, whatever eqs. 2-4 make of the similarities."""
    rng = np.random.default_rng(seed)
    t = rng.standard_normal((6, WIDTH))
    t /= np.linalg.norm(t, axis=1, keepdims=True)
    u = rng.standard_normal(WIDTH)
    t = t + 1.2 * np.linspace(-0.9, 1, 6)[:, None] * u / np.linalg.norm(u)  # some near it, some against it
    t *= (rng.uniform(0.6, 1.8, (6, 1)) if lengths else 1.0) / np.linalg.norm(t, axis=1, keepdims=True)
    v = u / np.linalg.norm(u) * rng.uniform(0.8, 1.9, (9, 1))
    return designed(name, v, t, theta, "all patches parallel: eqs. 2-5 are out of play")


PARALLEL = (parallel("parallel", 1, False), parallel("parallel_uneven", 2, True), parallel("parallel_warmer", 3, True, 0.5))
ANGLES = (
    equiangular("angles_4", 4, 0.3), equiangular("angles_5", 5, 0.55), equiangular("angles_3", 3, 0.2, 0.5),
    equiangular("angles_wide", 4, -0.25),
)  # fmt: skip


def apart(name, lengths=1.0, theta=THETA, even=False) -> Probe:
    """Each token has one patch, some way off its own direction; all other products are 0.  even: all of them as far."""
    n = 5
    e, w = np.eye(n, WIDTH), np.eye(n, WIDTH, n)
    a = np.full((n, 1), 0.7) if even else np.array([0.9, 0.75, 0.6, 0.85, 0.5])[:, None]
    v = a * e + np.sqrt(1 - a * a) * w
    return designed(name, v @ rotation(), (e @ rotation()) * np.reshape(lengths, (-1, 1)), theta, "groups that are known")


EVEN = (apart("apart_even", even=True), apart("apart_even_warmer", 1.0, 0.5, even=True))
UNEVEN = (
    apart("apart"), apart("apart_warmer", 1.0, 0.5),
    apart("apart_uneven", [0.6, 1.2, 1.8, 0.9, 1.5]), apart("apart_uneven_warmer", [1.9, 0.8, 0.7, 1.6, 1.1], 0.5),
)  # fmt: skip


def mixture(name, x=0.6, low=0.0, high=1.0, copies=1, patches=8, other=-0.1, scale=1.0) -> tuple[Probe, np.ndarray, np.ndarray]:
    """Token 0 mixes patch A, the likest, with `copies` of B, whose min-max similarity is x; token 1 has one patch.

    -> probe, A, B.  low, high: least and largest similarity of token 0's row.  other: what token 1 has with all but its own.
    """
    def vector(first, second, rest):
        y = np.zeros(WIDTH)
        y[0], y[1] = first, second
        y[2 + rest] = np.sqrt(1 - first**2 - second**2)
        return y

    top = 0.8                                             # similarities are below 1: patches have length 1
    a, b = vector(top * high, other, 0), vector(top * (low + x * (high - low)), other, 0)  # one plane
    own = vector(top * low, 0.5, 2)
    rest = [vector(top * low, other, 3 + k % 10) for k in range(patches - 2 - copies)]
    t = np.eye(2, WIDTH)
    t[0] *= scale
    return designed(name, [a, *[b] * copies, own, *rest], t, THETA, "the weight of one patch against another's"), a, b


MIXTURES = {
    "plain": mixture("mixture"),
    "less alike": mixture("mixture_x", x=0.45),
    "two of them": mixture("mixture_copies", copies=2),
    "a longer token": mixture("mixture_scale", scale=2.3),
    "all similarities raised": mixture("mixture_shift", low=0.15, high=0.9),
    "similarities below zero": mixture("mixture_below", low=-0.4, high=0.9),
    "more patches": mixture("mixture_patches", patches=20),
    "another token's similarities": mixture("mixture_other", other=0.15),
}
