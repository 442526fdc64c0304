"""Floors that ordinary embeddings never reach: below which range of similarities, or length of vectors, is it another loss?

Eq. 6 does not change when tokens or patches are scaled.  An epsilon or a clamp that is far smaller than ordinary numbers makes
no difference to them: what is measured here is a note and no fault.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from parity.checker.diagnosis import variants
from parity.checker.diagnosis.switches import Variant
from parity.checker.probes import PROBES, Answer, Probe

TOLERANCE = {"float64": 1e-4, "float32": 1e-2}            # of the loss: less is no floor that anybody meets
BOTH, ALONE = 10**-4.5, 1e-9                              # of ordinary lengths: tokens and patches together, one of them alone
WORDS = {
    "range": "a token's similarities span less than {below:.2g}", "tokens": "a token is shorter than {below:.2g}",
    "groups": "a group c of patches is shorter than {below:.2g}", "sums": "the sum of kept patches is shorter than {below:.2g}",
    "patches": "patches are about {below:.1g} long, or shorter",
}


@dataclass(frozen=True)
class Floor:
    """what: "range" of a row | "tokens" | "groups" | "sums" | "patches", their lengths.  off: of the loss, at `at`."""

    what: str
    below: float
    off: float
    at: float

    @property
    def words(self) -> str:
        far = f"off by {self.off:.2g} of it" if math.isfinite(self.off) else "not finite"
        where = WORDS[self.what].format(below=self.below)
        return (f"small numbers: where {where}, the loss is another ({far} at {self.at:.1g}); the ordinary batches that were "
                "asked hold nothing so small")

    def like(self, other: "Floor") -> bool:
        """The same limit, as far as it is said."""
        return self.what == other.what and abs(self.below / other.below - 1) < 0.06


def floors(ask: Callable[[Probe], Answer], model: Callable[[Probe], Answer], again: bool = False) -> tuple[Floor, ...]:
    """ask, model: what is checked, and its explanation.  again: on batches that were not asked before."""
    first, second = (PROBES[name] for name in (("unpadded", "unpadded_again") if again else ("padded", "equal_lengths")))

    def off(probe: Probe, tokens: float, patches: float) -> float:
        """Of the loss; 0 where there is no answer to compare."""
        small = replace(probe, t=tokens * probe.t, v=patches * probe.v, name=f"{probe.name}_{tokens:.6g}_{patches:.6g}")
        given, wanted = ask(small), model(small)
        which = "fine" if "fine" in given.losses else "total"
        if given.error or wanted.error or not {which} <= given.losses.keys() & wanted.losses.keys():
            return 0.0
        y, x = given.losses[which], wanted.losses[which]
        return abs(y - x) / max(abs(x), 1e-9) if math.isfinite(y) else math.inf

    tol = TOLERANCE["float32" if ask(first).dtype == "float32" else "float64"]
    if not off(first, BOTH, BOTH) > tol or off(first, 1.0, 1.0) > tol:
        return ()

    def edge(probe: Probe, sides: Any) -> float | None:
        """The scale at which it begins; None where it does not."""
        low, high = math.log(ALONE), 0.0
        if not off(probe, *sides(ALONE)) > tol:
            return None
        while high - low > 2e-3:
            middle = (low + high) / 2
            low, high = (middle, high) if off(probe, *sides(math.exp(middle))) > tol else (low, middle)
        return math.exp((low + high) / 2)

    found = []
    for sides, kinds in (((lambda x: (x, 1.0)), ("range", "tokens")), ((lambda x: (1.0, x)), ("range", "groups", "sums"))):
        scales = [edge(p, sides) for p in (first, second)]
        if None in scales:
            continue
        worst = off(first, *sides(ALONE))
        for kind in (*kinds, "patches") if "groups" in kinds else kinds:
            smallest = [size_of(p, kind, least=1 + math.isfinite(worst)) for p in (first, second)]
            sizes = [s * x for s, x in zip(scales, smallest) if s is not None]
            if abs(sizes[0] / sizes[1] - 1) < 0.02 or kind == "patches":
                found.append(Floor(kind, float(f"{sizes[0]:.2g}"), worst, ALONE * smallest[0]))
                break
    return tuple({x.what: x for x in found}.values())


def size_of(probe: Probe, kind: str, least: int) -> float:
    """The smallest in captions of `least` tokens or more (two have a loss, one may be NaN); of patches the longest."""
    counts = probe.mask & (probe.mask.sum(1, keepdims=True) >= least)
    s = probe.t @ np.swapaxes(probe.v, 1, 2)
    if kind == "range":
        return float(np.ptp(s, -1)[counts].min())
    if kind == "tokens":
        return float(np.linalg.norm(probe.t, axis=-1)[counts].min())
    if kind == "patches":
        return float(np.linalg.norm(probe.v, axis=-1).max())
    stages = variants.evaluate(probe, Variant(), grad=False).stages
    made = stages["grouped"] if kind == "groups" else stages["sparse"] @ probe.v
    return float(np.linalg.norm(made, axis=-1)[counts].min())
