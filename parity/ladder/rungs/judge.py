"""One tensor against what is wanted: by its entries, a gradient by its factor as well, and what the two together notice."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from parity.ladder.rungs.setup import Row, worst
from parity.vectors import budgets

BY_FACTOR = "held by its factor alone"


def judge(
    name: str, dtype: str, side: str, got: Any, want: np.ndarray, scale: float, budget: float, along: float | None = None, *,
    where: str = "", note: str = "", again: Callable[[], tuple[float, float]] | None = None,
    twin: tuple[np.ndarray, float] | None = None,
) -> Row:  # fmt: skip
    """The comparison that came closest to its budget, or went farthest beyond it.

    budget   of the entries, in parts of `scale`
    along    of the factor, for gradients; None: entries alone
    twin     another expected gradient for the factor alone, and its budget
    A comparison whose budget is budgets.PROVES or more counts only where it fails, or where there is no other.
    """
    found = [(budgets.error(got, want, scale), budget, where or worst(got, want))]
    length, along = twin or (want, along)
    if along is not None and budgets.largest(length) > 0:
        off = budgets.factor(got, length)
        found.append((off, along, f"{where + ': ' if where else ''}as a whole off by the factor {signed(got, length)}"))
    proving = [x for x in found if x[1] < budgets.PROVES]
    failing = [x for x in found if not x[0] <= x[1]]
    error, allowed, words = max(failing or proving or found[:1], key=lambda x: x[0] / x[1] if x[1] > 0 else math.inf)
    if found[0][1] >= budgets.PROVES and proving and not failing:
        note = note or f"{BY_FACTOR}: the budget of the entries, {found[0][1]:.2g} of the scale, proves nothing"
    seen = notices(got, want, scale, budget, along, length) if is_gradient(name) else None
    return Row(name, dtype, side, error, allowed, where=words, note=note, again=again, notices=seen)


def signed(got: Any, want: Any) -> str:
    got, want = budgets.to_float64(got), budgets.to_float64(want)
    with np.errstate(all="ignore"):
        return f"1 {float(np.sum((got - want) * want) / np.sum(want * want)):+.1e}"


def is_gradient(name: str) -> bool:
    """Whether a factor on a gradient shows in this tensor in proportion: a gradient, and the norm of all of them."""
    return name.startswith(("grad.", "norm ")) or ".grad." in name or name.endswith(".norms")


def notices(
    got: Any, want: np.ndarray, scale: float, budget: float, along: float | None = None, length: np.ndarray | None = None
) -> float:
    """The smallest x such that this run's gradient times 1 + x, and times 1 - x, would both have left a budget that proves.

    Infinite where none does, NaN where the gradient is exactly zero and no factor changes it.
    """
    got, want = budgets.to_float64(got), budgets.to_float64(want)
    length = want if length is None else budgets.to_float64(length)
    finite = np.isfinite(got) & np.isfinite(want)
    got, want, length = got[finite], want[finite], length[finite]
    if not np.any(got):
        return math.nan
    up = down = math.inf
    if budget < budgets.PROVES:
        size = np.abs(got)
        some = size > 0
        ahead = ((got - want) * np.sign(got))[some]       # how far an entry has gone in the direction of growth
        with np.errstate(over="ignore"):
            up = float(np.min(np.maximum(0, budget * scale - ahead) / size[some]))
            down = float(np.min(np.maximum(0, budget * scale + ahead) / size[some]))
    square = float(np.sum(length * length))
    if along is not None and along < budgets.PROVES and square > 0:
        factor = float(np.sum(got * length)) / square
        if factor > 0:
            up = min(up, max(0.0, (1 + along) / factor - 1))
            down = min(down, max(0.0, 1 - (1 - along) / factor))
    return max(up, down)
