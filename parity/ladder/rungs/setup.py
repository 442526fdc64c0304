"""What every rung is given, and what it yields."""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from parity.vectors import budgets


class NotRun(Exception):
    """A rung cannot be climbed here; the message says what is missing.  It is reported as not run, never as passed."""


@dataclass(frozen=True)
class Row:
    """One comparison: a tensor by its name, its error and its budget as fractions of the tensor's scale."""

    name: str
    dtype: str                      # "float64" | "float32" | "float16" | "bfloat16" | "mixed"
    side: str                       # whose numbers are on trial: "reference", "trainer", "trainer, world 2", ...
    error: float
    budget: float
    where: str = ""                 # the case and the entry that is off most, with both numbers
    note: str = ""                  # such as a difference that was found to be harmless
    must_leave: bool = False        # a planted error that has to be seen: ok means error > budget
    again: Callable[[], tuple[float, float]] | None = field(default=None, compare=False, repr=False)  # error, budget in float64
    notices: float | None = None    # a gradient: the smallest change of its size that would have been seen here (judge.py)

    @property
    def ok(self) -> bool:
        """Within the budget; NaN never is, on either side, nor is what is infinite."""
        return math.isfinite(self.error) and (self.error > self.budget if self.must_leave else self.error <= self.budget)

    @property
    def proves(self) -> bool:
        """Whether being within the budget says anything: see budgets.PROVES."""
        return self.must_leave or self.budget < budgets.PROVES


@dataclass(frozen=True)
class Side:
    """The modules of one side, by name.  A side compiled from changed source text takes its place in tests."""

    modules: dict[str, ModuleType]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.modules[name]
        except KeyError:
            raise AttributeError(name) from None


def reference_side(package: str = "sparc_ref", cases: str = "parity.vectors.cases") -> Side:
    """ops, encoders, alignment, losses, model, optim of the package; cases: how vectors call it."""
    side = _side(package, ("ops", "encoders", "alignment", "losses", "model", "optim"))
    return Side(side.modules | {"cases": importlib.import_module(cases)})


def trainer_side(package: str = "parity.trainer") -> Side:
    """model, loss, objectives, optim, ranks of the package."""
    return _side(package, ("model", "loss", "objectives", "optim", "ranks"))


def _side(package, names):
    return Side({name: importlib.import_module(f"{package}.{name}") for name in names})


@dataclass(frozen=True)
class Setup:
    """One climb."""

    preset: str                     # "quick" | "full"
    device: str                     # "cpu" | "cuda"
    seed: int
    reference: Side
    trainer: Side
    vectors: Path | None = None     # None: the ones that come with the package
    wanted: Callable[[str], bool] = lambda case_id: True  # which vectors to replay
    note: Callable[[str], Any] = lambda text: None        # a remark for the report
    series: Callable[[dict], Any] = lambda series: None   # curves for the report
    tick: Callable[[float], Any] = lambda share: None     # how much of the rung is done, 0 to 1

    @property
    def quick(self) -> bool:
        return self.preset == "quick"


def worst(got: np.ndarray, want: np.ndarray) -> str:
    """The entry that is off most, in words."""
    got, want = budgets.to_float64(got), budgets.to_float64(want)
    with np.errstate(invalid="ignore"):
        apart = np.abs(got - want)
    apart = np.where(np.isnan(apart) & ~(np.isnan(got) & np.isnan(want)), np.inf, apart)
    if not apart.size:
        return "no entries"
    at = np.unravel_index(int(np.argmax(np.nan_to_num(apart, nan=0.0, posinf=np.inf))), apart.shape)
    place = f"entry ({', '.join(str(int(i)) for i in at)}): " if at else ""
    mine, theirs = f"{got[at]:.6g}", f"{want[at]:.6g}"
    return f"{place}got {mine}, want {theirs}" if mine != theirs else f"{place}got {mine}, off by {apart[at]:.1e}"
