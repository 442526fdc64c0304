"""Batches of the sizes that people use, and how a size at which an explanation ends is said."""

import functools
import math
from dataclasses import dataclass

import numpy as np

from parity.checker.probes import Probe

KEYS = ("B", "L", "P", "D", "inverse", "length")
BASE = {"B": 3, "L": 6, "P": 9, "D": 16, "inverse": 3.5, "length": 1.0}
#         B    L   P    D  1/tau length of embeddings
SIZES = (                                                 # what tells most comes first, where time is short
    (1, 55, 256, 512, 14.3, 12.0), (64, 16, 49, 16, 100.0, 1.0), (2, 77, 196, 512, 1.0, 30.0), (17, 32, 197, 64, 14.3, 3.0),
    (3, 2, 4, 1024, 7.0, 10.0), (8, 24, 144, 32, 20.0, 1.0), (200, 4, 16, 16, 14.3, 1.0), (4, 8, 577, 16, 30.0, 1.0),
    (2, 5, 2, 768, 2.0, 10.0), (6, 1, 25, 16, 14.3, 1.0), (2, 9, 3, 24, 14.3, 0.3), (12, 40, 100, 16, 14.3, 2.0),
    (33, 20, 64, 128, 50.0, 6.0), (64, 55, 196, 16, 14.3, 2.0),
)  # fmt: skip


@functools.lru_cache(maxsize=64)                           # the same batches for every loss
def sized(B, L, P, D, inverse, length, full=False, seed=0) -> Probe:
    """A batch of any size.  Its numbers are float32's.      full: no padding

    Sample 0 is full, others may be padded.  Token 0 of each meets patches whose min-max similarity is prescribed, so that many
    are just below 1/P and as many just above; token 1 is one patch over again.  No other similarity is within 1e-5 of 1/P.
    """
    rng = np.random.default_rng([B, L, P, D, seed])       # the same numbers at every temperature and length
    v = unit(rng.standard_normal((B, P, D))) * rng.uniform(0.7, 2.2, (B, P, 1))
    v[:, :, 0] = np.stack([rng.permutation(wanted(P, rng)) for _ in range(B)])
    only = v[:, :, 0].argmin(1)                           # token 1 has this patch alone, and its very direction: a cosine of 1
    v[:, :, 1] = rng.uniform(-0.05, 0.4, (B, P)) / P
    v[np.arange(B), only] = 1.5 * np.eye(D)[1]
    t = tokens(rng, v, L)
    for _ in range(30):                                   # away from the threshold
        s = t @ np.swapaxes(v, 1, 2)
        near = np.abs((s - s.min(-1, keepdims=True)) / np.maximum(np.ptp(s, -1), 1e-9)[..., None] - 1 / P).min(-1) < 1e-5
        if not near.any():
            break
        t = np.where(near[..., None], tokens(rng, v, L), t)
    t[:, 0] = np.eye(D)[0]
    t[:, 1:2] = np.eye(D)[1]
    t[:, 2:3] = np.eye(D)[1] + 0.1 * np.eye(D)[2]         # and this one competes with it
    lengths = rng.integers(1, L + 1, B)
    lengths[0] = L
    mask = np.ones((B, L), bool) if full else np.arange(L) < lengths[:, None]
    bars = (unit(rng.standard_normal((B, D))) * rng.uniform(0.7, 1.8, (B, 1)) for _ in range(2))
    exact = [np.asarray(x).astype(np.float32).astype(np.float64) for x in (length * v, length * t, *bars)]
    theta = float(np.nextafter(np.float32(math.log(inverse)), np.float32(1.0)))
    name = f"reach_{B}_{L}_{P}_{D}_{inverse:.10g}_{length:.10g}" + "_full" * full + f"_{seed}" * bool(seed)
    return Probe(name, exact[0], exact[1], mask, theta, exact[2], exact[3], "sizes of real use")


def wanted(P, rng):
    """P min-max similarities: 0 and 1, a quarter just below 1/P, a quarter just above, the rest anywhere."""
    k = max(1, P // 4)
    close = 1 + 1e-3 * (1 + np.arange(k) / k)
    x = np.concatenate([[1.0, 0.0], close / P, (2 - close) / P, rng.uniform(min(2 / P, 0.6), 0.97, P)])
    return x[:P]


def tokens(rng, v, L):
    near = np.take_along_axis(v, rng.integers(0, v.shape[1], (len(v), L))[..., None], 1)
    t = unit(rng.standard_normal((len(v), L, v.shape[2]))) + unit(near)
    return t * rng.uniform(0.8, 1.9, (len(v), L, 1))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def largest(probe: Probe) -> float:
    """The largest similarity in size, of real tokens."""
    s = np.abs(probe.t @ np.swapaxes(probe.v, 1, 2)).max(-1)
    return float(s[probe.mask].max())


def measure(probe: Probe, key: str) -> float:
    """A size as it is said: of embeddings by the similarities that they give."""
    (batch, patches, width), columns = probe.v.shape, probe.t.shape[1]
    plain = {"B": batch, "L": columns, "P": patches, "D": width, "inverse": math.exp(probe.theta)}
    return float(plain[key]) if key in plain else largest(probe)


@dataclass(frozen=True)
class Limit:
    """Where an explanation ends.

    key     one of KEYS, "upstream", "float32" or "runs"; holds, fails: the sizes on both sides of the limit
    beside  other sizes that it takes: (key, from where on, a small size)
    loss, gradient   how far off on the worst probe that was tried, at size `worst`; gradient None: none to compare
    scattered  not sharp, for beyond it some batches are right, and none within it is wrong
    sharp   whether fresh numbers on both sides, and all sizes tried, agree with a limit there
    """

    key: str
    holds: float
    fails: float
    worst: float
    loss: float
    gradient: float | None
    beside: tuple[tuple[str, float, float], ...] = ()
    sharp: bool = True
    scattered: bool = False
    stage: str | None = None
    error: str = ""

    @property
    def ends_there(self) -> bool:
        """Whether it is a limit: within it nothing is wrong."""
        return self.sharp or self.scattered

    @property
    def up(self) -> bool:
        return self.fails > self.holds

    def beyond(self, probe: Probe) -> bool:
        """Whether a batch is on the wrong side of it."""
        if self.key not in KEYS:
            return False
        ends = [(key, small, size) for key, size, small in self.beside] + [(self.key, self.holds, self.fails)]
        return all(x >= fails if fails > holds else x <= fails
                   for x, holds, fails in ((measure(probe, key), holds, fails) for key, holds, fails in ends))

    @property
    def condition(self) -> str:
        """The condition under which it holds."""
        bound = ("at most" if self.up else "at least") + " about" * (not self.ends_there)
        many = self.holds != 1
        held = CONDITION[self.key].format(bound=bound, x=plain(self.holds), s="s" * many, es="es" * many)
        beside = [BESIDE[key].format(x=plain(x)) for key, x, _ in self.beside]
        return f"{held} ({' and '.join(beside)})" if beside else held

    @property
    def words(self) -> str:
        """Two sentences: where it ends, and how far off it is beyond."""
        if self.error:
            return f"With {said(self.key, self.worst)} it raises {self.error}."
        with_ = " and ".join(said(key, x) for key, x, _ in self.beside)
        with_ = with_ and f", with {with_},"
        far = distance(self.loss, self.gradient)
        if self.key == "upstream":
            return ("Where the loss is multiplied before its gradient is taken, the gradient does not follow: it is wrong once "
                    f"its largest entry would be {plain(self.fails)}; {far} where that would be {plain(self.worst)}.")
        if self.key == "float32":
            return f"In float32 the same batch gives something else: {far}."
        ends = "on" if self.up else "down"
        near = self.key in ("inverse", "length")          # no whole numbers: a thousandth apart
        start = f"From {said(self.key, self.fails)} {ends}{with_} it differs"
        if near:
            start = f"{'Above' if self.up else 'Below'} {said(self.key, self.holds)}{with_} it differs"
        if self.scattered:
            start = f"{start}, though not on every batch"
        elif not self.sharp:
            less = f"a little {'less' if self.up else 'more'}" if near else said(self.key, self.holds)
            start = (f"With {said(self.key, self.fails)}{with_} it differs, with {less} it does not, and other sizes do not "
                     "agree with one limit")
        return f"{start}: {far} with {said(self.key, self.worst)}."


CONDITION = {
    "B": "{bound} {x} sample{s} in a batch", "L": "{bound} {x} token{s} in a caption", "P": "{bound} {x} patch{es}",
    "D": "{bound} {x} dimensions", "inverse": "1/tau {bound} {x}", "length": "similarities of {bound} {x}",
    "upstream": "entries of the gradient of {bound} {x}", "float32": "float64",
}  # fmt: skip
BESIDE = {"B": "with {x} samples", "L": "with {x} tokens", "P": "with {x} patches", "D": "with {x} dimensions",
          "inverse": "with 1/tau {x}", "length": "with embeddings {x} times as long"}
SAID = {"B": "{x} samples", "L": "{x} tokens", "P": "{x} patches", "D": "{x} dimensions", "inverse": "1/tau = {x}",
        "length": "a similarity of {x}"}


def said(key, x) -> str:
    text = SAID[key].format(x=plain(x))
    return text.removesuffix("es" if key == "P" else "s") if x == 1 and key in "BLPD" else text


def plain(x) -> str:
    whole = 999.5 <= abs(x) < 1e6 or ((not isinstance(x, float) or x == round(x)) and x < 1e6)
    return f"{x:.0f}" if whole else f"{x:.3g}"


def distance(loss: float, gradient: float | None) -> str:
    """How far off, in words."""
    if not math.isfinite(loss):
        return "not finite"
    parts = [f"the {what} {share(x)} off" for what, x in (("loss", loss), ("gradient", gradient)) if x is not None and x > 1e-7]
    return " and ".join(parts) or "a little off"


def share(x: float) -> str:
    """A relative error: per cent, or a factor where it is more than ten times."""
    if not math.isfinite(x):
        return "infinitely"
    return f"{100 * x:.2g} %" if x < 0.1 else f"{100 * x:.0f} %" if x < 10 else f"{x:.0f} times its size"


RANGES = {"B": "B", "L": "L", "P": "P", "D": "D", "inverse": "1/tau", "upstream": "loss times"}


def ranges(tried: dict[str, list]) -> str:
    """The sizes that were asked, in one line."""
    ends = {key: tried[key] for key in RANGES if key in tried}
    spans = [f"{RANGES[key]} {plain(low)}" + f"-{plain(high)}" * (high != low) for key, (low, high) in ends.items()]
    if "similarity" in tried:
        spans.append(f"similarities to {plain(tried['similarity'][1])}")
    return ", ".join([*spans, *(" and ".join(x) for x in [tried.get("dtypes")] if x)])
