"""What a black box is asked: small float64 inputs, each of which lets some deviations show and hides the others.

B batch, L tokens, P patches, D = 16.  Ordinary probes keep away from every knife edge: no similarity is within 1e-4 of a
threshold, no two patches tie.  Ties, flat rows and zeros have probes of their own, in numbers that are exact in float16.
"""

import functools
from dataclasses import dataclass, field, replace

import numpy as np

WIDTH = 16                                                # D; 1/4 sixteen times is a vector of length exactly 1


@dataclass(frozen=True)
class Probe:
    """v (B,P,D) patches, t (B,L,D) tokens, mask (B,L) true = real token, theta = log(1/tau), v_bar, t_bar (B,D): float64.

    shows: what it is for.  flat: a row of t v' has no range.  edge: on a knife edge on purpose, no verdict rests on it.
    """

    name: str
    v: np.ndarray
    t: np.ndarray
    mask: np.ndarray
    theta: float
    v_bar: np.ndarray
    t_bar: np.ndarray
    shows: str = ""
    flat: bool = False
    edge: bool = False

    @functools.cached_property
    def holds(self) -> frozenset[str]:
        """Which of deviations.CONDITIONS it fulfils.  Zeros at padding are flat rows too."""
        lengths = self.mask.sum(1)
        zeros = bool(((self.t == 0).all(-1) & ~self.mask).any())
        met = {
            "no flat rows": not self.flat and not zeros,
            "no caption of padding alone": bool((lengths > 0).all()),
            "no zero embeddings at padding": not zeros,
            "equal lengths": bool((lengths == lengths[0]).all()),
            "no padding": bool(self.mask.all()),
            "B = 1": len(self.v) == 1,
            "unit-norm patches": bool((np.abs(np.linalg.norm(self.v, axis=-1) - 1) < 1e-12).all()),
        }
        return frozenset(name for name, holds in met.items() if holds)


@dataclass(frozen=True)
class Answer:
    """What the black box said to one probe.

    losses  any of "fine", "global", "total"; NaN and infinity are answers
    grads   loss name -> arrays by input name "v", "t", "theta", "v_bar", "t_bar"; a missing key: it gives none
    stages  (where, array) in the order in which they were made, or None
    error   the exception, where it raised one
    dtype   what it computed in, "float64" or "float32"
    """

    losses: dict[str, float] = field(default_factory=dict)
    grads: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    stages: list[tuple[str, np.ndarray]] | None = None
    error: str | None = None
    dtype: str = "float64"


def threshold_probe(name, wanted, *, swapped=False, lengthen=1.0, lift=None, samples=1) -> Probe:
    """Token 0 meets patches whose min-max similarity is exactly 0, wanted..., 1; all vectors of length 1 and tau = 1.

    A patch below the threshold has no part in the loss: its gradient is exactly 0.  Token 1 uses one patch alone, up to 1e-7.
    wanted  n numbers in (0, 1): P = n + 2, they belong to patches 2 ...      swapped: tokens and patches change places
    lengthen  scales token 0, and with it the range of its row; lift: adds a constant to its row, whose range is then `lengthen`
    samples   2: a second one beside it, for losses that are 0 on one
    """
    x = np.asarray(wanted, dtype=np.float64)
    n = len(x)
    rng = np.random.default_rng([ord(letter) for letter in name])
    keys = np.zeros((n + 2, WIDTH))
    keys[0, 0], keys[1, 1] = 1.0, 1.0                     # the largest similarity of token 0, and its smallest
    keys[2:, 0], keys[2:, 1] = x, 1e-7 * (1 + np.arange(n) / n)
    if lift is not None:
        keys[:, 0] = lift + lengthen * keys[:, 0]
        keys[1, 1] = np.sqrt(1 - keys[1, 0] ** 2)
    rest = rng.standard_normal((n + 2, WIDTH - 2))
    short = np.sqrt(np.maximum(0, 1 - (keys[:, :2] ** 2).sum(1)))
    keys[:, 2:] = rest / np.linalg.norm(rest, axis=1, keepdims=True) * np.where(short < 1e-7, 0, short)[:, None]
    rows = np.eye(2, WIDTH)
    rows[0] *= 1.0 if lift is not None else lengthen
    v, t = (rows, keys) if swapped else (keys, rows)
    v, t = (np.stack([np.roll(x, 5 * k, axis=-1) for k in range(samples)]) for x in (v, t))
    pool = _directions(rng, (2, samples))
    shows = "which patches pass the threshold, whatever follows"
    return Probe(name, v, t, np.ones(t.shape[:2], dtype=bool), 0.0, pool[0], pool[1], shows, edge=True)


def knife_probe(sigma, samples=1, lengthen=1.0, patches=4) -> Probe:
    """threshold_probe with one similarity that is sigma exactly, also after patches are l2-normalised.

    lengthen: the range of its row, a power of 2.  patches: P
    """
    more = sigma + (1 - sigma) * np.arange(1, patches - 2) / (patches - 2)
    name = "knife" if patches == 4 else f"again_knife_{patches}"
    for attempt in range(400):
        probe = threshold_probe(f"{name}_{attempt}", (sigma, *more), samples=samples, lengthen=lengthen)
        squares = probe.v[0] * probe.v[0]
        sums = squares.sum(-1), squares.cumsum(-1)[:, -1], squares[:, ::-1].cumsum(-1)[:, -1]
        if all((x[:4] == 1).all() for x in sums):         # of many patches, those that matter
            break
    name = name if lengthen == 1 else f"{name}_long"
    return replace(probe, name=name, shows="a similarity that is exactly the threshold: > or >=")


def draw(name, lengths, columns, patches, *, unit=False, flat=False, zero=False, shows="", tries=4000) -> Probe:
    """A random probe with margins.  lengths: real tokens of each caption; columns: L; unit: patches of length 1."""
    seed = [ord(letter) for letter in name]
    for attempt in range(tries):
        probe = _draw(np.random.default_rng([attempt, *seed]), name, lengths, columns, patches, unit, flat, zero, shows)
        if margin(probe, enough=1e-4) > 1e-4:
            return probe
    raise AssertionError(f"{name}: no draw with margins in {tries}")


def _draw(rng, name, lengths, columns, patches, unit, flat, zero, shows):
    batch = len(lengths)
    if unit and flat:
        v = rng.choice([-0.25, 0.25], (batch, patches, WIDTH))
    else:
        v = _directions(rng, (batch, patches))
        v = v if unit else v * rng.uniform(0.7, 2.2, (batch, patches, 1))
    near = np.take_along_axis(v, rng.integers(0, patches, (batch, columns))[..., None], 1)  # each token resembles a patch
    t = _directions(rng, (batch, columns)) + near / np.linalg.norm(near, axis=-1, keepdims=True)
    t *= rng.uniform(0.8, 1.9, (batch, columns, 1))
    mask = np.arange(columns) < np.array(lengths)[:, None]
    if flat:                                              # sample 0: patches agree in one coordinate, a token has no other
        v[0, :, 0] = 0.25
        t[0, 1 % max(1, lengths[0])] = np.eye(WIDTH)[0] * 1.5
    if zero:
        t[~mask] = 0
    v_bar, t_bar = (_directions(rng, (batch,)) * rng.uniform(0.7, 1.8, (batch, 1)) for _ in range(2))
    return Probe(name, v, t, mask, float(np.round(rng.uniform(0.9, 1.6), 3)), v_bar, t_bar, shows, flat)


def _directions(rng, shape):
    x = rng.standard_normal((*shape, WIDTH))
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def margin(probe: Probe, enough: float = 0.0) -> float:
    """How near the probe comes to a knife edge of the usual variants, flat rows left out.  One below `enough` ends it."""
    least = 1.0
    for normalised in (False, True):
        v = probe.v / np.linalg.norm(probe.v, axis=-1, keepdims=True) if normalised else probe.v
        s = probe.t @ np.swapaxes(v, 1, 2)                # (B,L,P)
        real = [x[m].T for x, m in zip(s, probe.mask) if m.sum() > 1]
        every = np.swapaxes(s, 1, 2) if "no zero embeddings at padding" in probe.holds else ()  # zeros tie
        for rows in (s.reshape(-1, s.shape[-1]), *real, *every):
            rows = rows[np.ptp(rows, -1) > 1e-9]
            if len(rows) and rows.shape[-1] > 1:
                least = min(least, _row_margin(rows, probe))
                if least <= enough:
                    return least
        if not normalised:                                # maxima and sums away from 0, for what divides by them
            rows = s[np.ptp(s, -1) > 1e-9]
            least = min(least, 1e-3 * (rows.max(-1) - 0.6).min(), 1e-3 * np.abs(rows.sum(-1)).min())
    return float(least)


def _row_margin(rows, probe):
    n = rows.shape[-1]
    lo = rows.min(-1, keepdims=True)
    s_hat = (rows - lo) / np.ptp(rows, -1)[:, None]
    kept = np.where(s_hat >= 1 / n, s_hat, 0).sum(-1, keepdims=True)
    edges = [np.abs(s_hat - 1 / k).min() for k in (n, probe.v.shape[1], probe.mask.shape[1], 196) if k > 1]
    edges += [np.abs(x - 1 / n).min() for x in (s_hat / s_hat.sum(-1, keepdims=True), s_hat / kept, rows)]
    if not probe.flat and n > 2:                          # patterns of 1/4 tie; two numbers are minimum and maximum
        gaps = np.diff(np.sort(s_hat, -1), axis=-1)
        edges += [gaps[:, 0].min(), gaps[:, -1].min()]
    return min(edges)


# B, L and P of nearly all probes: some frameworks compile anew for every shape, and some code wants a square of patches.
MAIN = {"columns": 6, "patches": 9}
MORE = {"columns": 7, "patches": 16}


def _probes():
    unit, flat, zero = {"unit": True}, {"flat": True}, {"zero": True}
    everything = (
        draw("padded", (5, 3, 1), **MAIN, shows="unequal lengths, padding, patches of unequal norm: everything at once"),
        draw("padded_again", (7, 2, 4, 5), **MORE, shows="as padded, other sizes"),
        draw("unpadded", (6, 6, 6), **MAIN, shows="no padding: masks are out of play"),
        draw("unpadded_again", (7, 7, 7, 7), **MORE, shows="no padding, other sizes"),
        draw("equal_lengths", (4, 4, 4), **MAIN, shows="padding, but captions of equal length: eq. 6 and Listing 1 agree"),
        draw("single", (6,), **MAIN, shows="one sample without padding: eqs. 2-5, norms, temperature and directions alone"),
        draw("single_again", (7,), **MORE, shows="as single, other sizes"),
        draw("single_padded", (4,), **MAIN, shows="one sample with padding: no other captions"),
        draw("unit_padded", (4, 2, 5), **MAIN, **unit, shows="unit-norm patches: cosine and inner product rank patches alike"),
        draw("unit_unpadded", (6, 6, 6), **MAIN, **unit, shows="unit-norm patches, no padding"),
        draw("unit_equal_lengths", (3, 3, 3), **MAIN, **unit, shows="unit-norm patches, equal lengths"),
        draw("unit_single", (6,), **MAIN, **unit, shows="unit-norm patches, one sample"),
        draw("unit_single_padded", (4,), **MAIN, **unit, shows="unit-norm patches, one sample with padding"),
        draw("flat", (5, 3, 2), **MAIN, **flat, shows="a token to which every patch is alike: eq. 2 is 0/0"),
        draw("flat_unpadded", (6, 6, 6), **MAIN, **flat, shows="a flat row, no padding"),
        draw("flat_equal_lengths", (3, 3, 3), **MAIN, **flat, shows="a flat row, equal lengths"),
        draw("flat_single", (6,), **MAIN, **flat, shows="a flat row, one sample"),
        draw("flat_single_padded", (4,), **MAIN, **flat, shows="a flat row, one sample with padding"),
        draw("flat_unit", (4, 3, 5), **MAIN, **unit, **flat, shows="a flat row among unit-norm patches"),
        draw("flat_unit_unpadded", (6, 6, 6), **MAIN, **unit, **flat, shows="a flat row among unit-norm patches, no padding"),
        draw("flat_unit_single", (6,), **MAIN, **unit, **flat, shows="a flat row among unit-norm patches, one sample"),
        draw("zero_padding", (5, 2, 4), **MAIN, **zero, shows="padded embeddings exactly zero"),
        draw("zero_equal_lengths", (3, 3, 3), **MAIN, **zero, shows="padded embeddings exactly zero, equal lengths"),
        draw("zero_single", (4,), **MAIN, **zero, shows="padded embeddings exactly zero, one sample"),
        draw("zero_unit", (4, 2, 3), **MAIN, **unit, **zero, shows="padded embeddings exactly zero, unit-norm patches"),
        draw("zero_unit_equal_lengths", (4, 4, 4), **MAIN, **unit, **zero, shows="as zero_unit, equal lengths"),
        draw("zero_unit_single", (3,), **MAIN, **unit, **zero, shows="as zero_unit, one sample"),
        draw("all_padding", (4, 0, 5), **MAIN, shows="a caption of padding alone"),
        draw("all_padding_unit", (0, 4, 3), **MAIN, **unit, shows="a caption of padding alone, unit-norm patches"),
    )
    return {probe.name: probe for probe in everything}


PROBES = _probes()
HELD_OUT = {
    probe.name: probe
    for probe in (
        draw("confirm", (3, 5, 2, 6, 4), 8, 9, shows="kept back until an explanation stands"),
        draw("confirm_again", (2, 6, 3), **MAIN, shows="kept back until an explanation stands"),
    )
}
