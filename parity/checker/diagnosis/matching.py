"""Tables of losses against what was read, and the order of explanations: few deviations before many, common before rare."""

from dataclasses import dataclass

import numpy as np

from parity.checker.diagnosis.asking import FLOOR, simplest
from parity.checker.diagnosis.deviations import DEVIATIONS, Found
from parity.checker.diagnosis.switches import Variant, found_in


@dataclass(frozen=True)
class Candidate:
    """A setting that reproduces what it was compared with."""

    fine: Variant
    off: float                      # largest relative error of the loss so far

    @property
    def cost(self) -> tuple:
        return cost(found_in(self.fine))


def cost(found: tuple[Found, ...]) -> tuple:
    """Fewer deviations first, then what the survey met more often, then the usual way to write it."""
    bad = [d for d in found if not DEVIATIONS[d.id].harmless]
    return len(bad), -sum(DEVIATIONS[d.id].seen for d in bad), len(found), sum(len(d.way) for d in found), str(found)


def best_first(candidates):
    """By cost; of settings that differ in what is harmless, the plainest."""
    seen = {}
    for c in sorted(candidates, key=lambda c: c.cost):
        bad = tuple(d for d in found_in(c.fine) if not DEVIATIONS[d.id].harmless)
        seen.setdefault((bad, c.fine.factor), c)
    return list(seen.values())


def relative(values, wanted):
    """|values - wanted| / size; 0 where both are NaN or the same infinity, inf where only one is finite."""
    with np.errstate(all="ignore"):
        off = np.abs(values - wanted) / np.maximum(np.maximum(np.abs(values), np.abs(wanted)), FLOOR)
    same = (values == wanted) | (np.isnan(values) & np.isnan(wanted))
    return np.where(same, 0.0, np.where(np.isfinite(off), off, np.inf))


def match(table: np.ndarray, wanted: np.ndarray, factor: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of a table (settings, probes) are `wanted` (probes,), times a factor; None: any factor but 1.

    -> worst relative error (settings,), factors (settings,)
    """
    with np.errstate(all="ignore"):
        best = np.abs(wanted).argmax()
        factors = np.full(len(table), factor if factor is not None else 1.0)
        if factor is None:
            factors = wanted[best] / table[:, best]
        return relative(table * factors[:, None], wanted).max(1), factors


def simplest_factor(x: float, tol: float) -> float:
    wide = max(tol, 1e-9) * abs(x)
    return float(simplest(x - wide, x + wide))
