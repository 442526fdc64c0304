"""Differences in a stage that the loss cannot see: a positive factor per row, a shift of the similarity, swapped directions.

Such a stage is fitted to the expected one and compared again.  A fit hides no fault: a stage behind it, the loss or a
gradient would then differ, and those are compared as they are.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from parity import vectors
from parity.vectors import budgets

SWAPPED = {"logits_vt": "logits_tv", "logits_tv": "logits_vt", "loss_vt": "loss_tv", "loss_tv": "loss_vt"}
FACTOR = ("minmax", "sparse", "weights", "grouped")


def harmless(name: str, got: Mapping[str, Any], case: vectors.Case) -> tuple[np.ndarray, str] | None:
    """A stage after the most favourable harmless change, and that change in words; None where the stage has none."""
    short, want, mask = name.removeprefix("mid."), case.tensors[name], case.tensors.get("in.mask")

    def zeroed(x, name):
        return vectors.zero_padding(budgets.to_float64(x), mask, case.padding.get(name, ()))

    if short == "similarity":
        return fitted(zeroed(got[name], name), want, shift=True), "differs by a positive factor or a shift per row: harmless"
    if short in FACTOR:
        return fitted(zeroed(got[name], name), want, shift=False), "differs by a positive factor per row: harmless"
    other = f"mid.{SWAPPED.get(short, '')}"
    if other in got and np.shape(got[other]) == want.shape:
        return zeroed(got[other], other), "is the other direction's: harmless, the loss takes both"
    return None


def fitted(got: np.ndarray, want: np.ndarray, shift: bool) -> np.ndarray:
    """Each row of `got` times the factor (and moved by the shift) that brings it nearest to `want`; a factor <= 0 is no fit.

    got, want (...,P) -> (...,P)
    """
    with np.errstate(invalid="ignore", over="ignore"):
        a = np.mean(got, -1, keepdims=True) if shift else 0.0
        b = np.mean(want, -1, keepdims=True) if shift else 0.0
        square = np.sum((got - a) ** 2, -1, keepdims=True)
        factor = np.sum((got - a) * (want - b), -1, keepdims=True) / np.where(square == 0, 1.0, square)
        good = np.isfinite(factor) & ((factor > 0) | (square == 0))
        return np.where(good, (got - a) * factor + b, got)
