"""Asking a black box: every probe at most once, calls counted, answers compared at their own precision."""

import inspect
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from parity.checker.probes import PROBES, Answer, Probe

PRECISION = {                                             # loss relative, gradient relative to its largest entry
    "float64": (1e-9, 1e-7), "float32": (3e-5, 1e-3),
    "rounded": (1e-6, 1e-5),                              # float64, and some number rounded to float32 on the way
}
FLOOR = 0.05                                              # smaller losses are compared absolutely
KEYS = ("v", "t", "theta", "v_bar", "t_bar")


@dataclass(frozen=True)
class Reading:
    """One loss on one probe.  value is NaN where it is; grads by input name; error where the box raised one."""

    value: float
    grads: dict[str, np.ndarray] = field(default_factory=dict)
    error: str | None = None

    @property
    def finite(self) -> bool:
        return math.isfinite(self.value)

    @property
    def nan_gradient(self) -> bool:
        return any(not np.isfinite(g).all() for g in self.grads.values())


class Box:
    """Remembers what was answered; `calls` counts."""

    def __init__(self, ask):
        self._ask = ask
        try:
            self._traces = "trace" in inspect.signature(ask).parameters
        except (TypeError, ValueError):
            self._traces = False
        self.again: Callable[..., Answer] | None = getattr(ask, "again", None)  # another precision, a scaled loss
        self.answers: dict[str, Answer] = {}
        self.probes: dict[str, Probe] = {}
        self.calls = 0
        self.rounded = False
        self.door: Any = None                             # clauses.Door, once something was said

    def __call__(self, probe: Probe) -> Answer:
        if probe.name not in self.answers:
            self.calls += 1
            self.answers[probe.name], self.probes[probe.name] = self._ask(probe), probe
        return self.answers[probe.name]

    def read(self, probe: Probe, which: str) -> Reading:
        """The loss `which` on a probe."""
        answer = self(probe)
        if answer.error is not None or which not in answer.losses:
            return Reading(math.nan, error=answer.error or f"no loss {which!r} was given")
        grads = {name: np.asarray(g, dtype=np.float64) for name, g in answer.grads.get(which, {}).items() if g is not None}
        return Reading(float(answer.losses[which]), grads)

    def trace(self, probe: Probe) -> list[tuple[str, np.ndarray]]:
        """The arrays that the box makes on the way; [] where it cannot be watched."""
        answer = self(probe)
        if answer.stages is None and answer.error is None and self._traces:
            answer = self._ask(probe, trace=True)
        return answer.stages or []

    def dtype(self) -> str:
        """What it computes in: float32 where its losses are float32's, or where changes of 1e-12 do not reach them."""
        answers = [a for a in self.answers.values() if a.error is None]
        values = [x for a in answers for x in a.losses.values() if math.isfinite(x) and x != 0]
        told = [a.dtype for a in answers if any(math.isfinite(x) and x for x in a.losses.values())]
        if sum(kind != "float64" for kind in told) > len(told) / 2:  # one number may be float32's by chance, as log(1/tau) is
            return "float32"
        if len(values) > 2 and all(float(np.float32(x)) == x for x in values):
            return "float32"
        return "float32" if self.blind() else "float64"

    def blind(self) -> bool:
        """Whether embeddings that differ by 1e-12 of themselves give the same losses to the last bit."""
        one = PROBES["unpadded"]
        two = replace(one, v=one.v * (1 + 1e-12), t=one.t + 1e-12 * one.t[..., ::-1], name="unpadded_moved",
                      v_bar=one.v_bar + 1e-12 * one.v_bar[..., ::-1], t_bar=one.t_bar + 1e-12 * one.t_bar[..., ::-1])
        first, second = self(one), self(two)
        values = [x for x in first.losses.values() if math.isfinite(x) and x]
        return bool(values) and not second.error and first.losses == second.losses

    def tolerances(self) -> tuple[float, float]:
        """What counts as rounding: of a loss, of a gradient."""
        dtype = self.dtype()
        return PRECISION["rounded" if self.rounded and dtype == "float64" else dtype]


def two_values(read: Any, probe: Probe, calls: int = 12, seconds: float = 1.0) -> tuple[float, float] | None:
    """Two values of the same batch, in so many calls; None where all are one, to 1e-9."""
    one, start = read(probe), time.monotonic()
    for _ in range(calls if read.box.again is not None and one.finite else 0):
        two = read.box.again(probe).losses.get(read.which, math.nan)
        if abs(two - one.value) > 1e-9 * max(1.0, abs(one.value)):
            return one.value, two
        if time.monotonic() - start > seconds:
            break
    return None


def loss_off(given: float, wanted: float) -> float:
    """Relative; 0 where both are NaN or the same infinity, inf where one is."""
    if not (math.isfinite(given) and math.isfinite(wanted)):
        return 0.0 if given == wanted or not (math.isfinite(given) or math.isfinite(wanted)) else math.inf
    return abs(given - wanted) / max(abs(wanted), abs(given), FLOOR)


def gradient_off(given: dict, wanted: dict, v: np.ndarray | None = None) -> float | None:
    """Largest difference of any entry, relative to the largest entry of that input's gradient.  None: nothing to compare.

    v (B,P,D): compare gradients of patches in the tangent of the unit sphere, where v is given.
    A gradient that was not given is not compared; one that is zero because there is no path to it is given as zeros.
    """
    if not given:
        return None
    if v is not None:
        given, wanted = (g | {"v": tangent(g["v"], v)} if "v" in g else g for g in (given, wanted))
    spoilt = [any(not np.isfinite(x).all() for x in g.values()) for g in (given, wanted)]
    if any(spoilt):                                       # which entries are NaN depends on how sums are written
        return 0.0 if all(spoilt) else math.inf
    top = max((np.abs(g).max(initial=0.0) for g in wanted.values()), default=0.0)
    worst = 0.0
    for name, want in wanted.items():
        got = given.get(name)
        if got is None:                                   # not an input, or a gradient that nobody gave: not known
            continue
        got = np.reshape(got, np.shape(want))
        scale = max(np.abs(want).max(initial=0.0), 1e-3 * top, 1e-6)
        worst = max(worst, float(np.abs(got - want).max(initial=0.0) / scale))
    return worst


def tangent(g, v):
    """What is left of dLoss/dv where |v| = 1 is kept: the gradient with respect to u, v = u/|u|."""
    return g - (g * v).sum(-1, keepdims=True) * v


def simplest(low: float, high: float) -> float:
    """The number with the fewest digits, or else the simplest 1/n, in an interval; its middle where neither is simple."""
    if low == high == 0:
        return 0.0
    if high <= low:
        low, high = low - 1e-15 * abs(low), low + 1e-15 * abs(low)
    middle = (low + high) / 2
    digits = max(0, math.floor(-math.log10(high - low)))
    for places in range(digits + 2):
        x = round(middle, places)
        short = len(f"{abs(x):.12g}".replace("0.", "").replace(".", "").strip("0")) <= 3
        if low <= x <= high and x != 0 and short:
            return x
    for n in (round(1 / high), round(1 / middle), round(1 / low)) if middle else ():
        if n >= 2 and low <= 1 / n <= high and n <= 1e5:
            return 1 / n
    for places in range(digits + 1):
        x = round(middle, places)
        if low <= x <= high and x != 0 and places <= 6:
            return x
    return middle
