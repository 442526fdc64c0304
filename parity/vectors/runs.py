"""The reference run in other dtypes, on other arrays and with its sums in another order: what budgets are measured from."""

import itertools

import numpy as np

from parity.vectors import budgets
from parity.vectors.cases import FUNCTIONS
from parity.vectors.cases.core import Definition, Draw
from parity.vectors.read import Case, zero_padding
from parity.vectors.witnesses import padded_axes, reference, wide

ORDERS = 3  # besides the given one
NUDGES = 3


def nudged(case: Definition) -> list[dict]:
    """Inputs moved by one of float32's units of rounding, each number up or down: what no float32 program can tell apart.

    At a knife edge theta alone is moved, for the others are exact on purpose.
    """
    draw, moved = Draw(len(case.id) + 1), []
    for _ in range(NUDGES):
        signs = {n: np.where(draw.normal(*x.shape) < 0, -1.0, 1.0) for n, x in case.inputs.items()}
        movable = [n for n, x in case.inputs.items() if np.issubdtype(x.dtype, np.floating) and (n == "theta" or not case.edge)]
        moved.append({n: wide(case.inputs[n]) * (1 + budgets.EPS["float32"] * signs[n]) for n in movable})
    return moved


def answers(case: Definition, upstream: dict, dtype: str) -> list[dict]:
    """Answers to one case: NumPy (if it has the dtype) and torch, in the given order and in ORDERS others; nudged ones."""
    kinds = ["torch"] if dtype == "bfloat16" else ["numpy", "torch"]
    if dtype == "float64":
        return [answer(case, upstream, dtype, "numpy")]
    found = [answer(case, upstream, dtype, kind, order) for kind, order in itertools.product(kinds, [{}, *shuffles(case)])]
    return found + [answer(case, upstream, "float64", "numpy", moved=moved) for moved in nudged(case)]


def answer(
    case: Definition, upstream: dict, dtype: str, kind: str, order: dict | None = None, moved: dict | None = None
) -> dict:
    """One answer; what `order` shuffles on the way in is put back on the way out; `moved` is in place of inputs."""
    order, given = order or {}, {**case.inputs, **(moved or {})}
    letters = FUNCTIONS[case.function].letters(case.options)

    def shuffled(n, x):
        for axis, letter in enumerate(letters.get(n, "")):
            x = np.take(x, order[letter], axis) if letter in order else x
        return x

    def restored(n, x):
        for axis, letter in enumerate(letters.get(n, "")):
            if letter in order:
                back = np.argsort(order[letter])
                x = np.take(x, back, axis) if kind == "numpy" else x.index_select(axis, _torch().from_numpy(back))
        return x

    with np.errstate(all="ignore"):
        inputs = {n: cast(shuffled(n, x), kind, dtype) for n, x in given.items()}
        upstream = {n: cast(shuffled(n, x), kind, dtype) for n, x in upstream.items()}
        got = reference(case, inputs, upstream)
    mask = case.inputs.get("mask")
    result = {}
    for name, x in got.items():
        returned = budgets.dtype_of(x, dtype)
        x = budgets.to_float64(restored(name.partition(".")[2], x))
        result[name] = Answer(zero_padding(x, mask, padded_axes(case, name)), returned)
    return result


def replay(case: Case, dtype: str = "float64", kind: str = "numpy") -> dict:
    """The reference's answer to a frozen case, for vectors.compare.      kind: "numpy" or "torch" arrays"""
    inputs = {n[3:]: x for n, x in case.tensors.items() if n.startswith("in.")}
    upstream = {n[3:]: x for n, x in case.tensors.items() if n.startswith("ct.")}
    definition = Definition(case.id, case.function, inputs, case.options, input_dtype=case.input_dtype)
    got = answer(definition, upstream, dtype, kind)
    return {name: got[name].x for name in case.budget if name in got}


class Answer:
    """An array in float64 that remembers the dtype in which it was returned."""

    def __init__(self, x: np.ndarray, dtype: str):
        self.x, self.dtype, self.shape = x, dtype, x.shape

    def __array__(self, dtype=None, copy=None):
        return self.x if dtype is None else self.x.astype(dtype)


def cast(x: np.ndarray, kind: str, dtype: str):
    """A case's array as another kind of array; floats in `dtype`."""
    floating = np.issubdtype(x.dtype, np.floating)
    if kind == "numpy":
        return np.asarray(x, dtype) if floating else x
    tensor = _torch().tensor(np.ascontiguousarray(x)).reshape(np.shape(x))
    return tensor.to(getattr(_torch(), dtype)) if floating else tensor


def shuffles(case: Definition) -> list[dict]:
    """Orders of every dimension that has none, by its letter."""
    function = FUNCTIONS[case.function]
    sizes: dict[str, int] = {}
    letters = function.letters(case.options)
    for n, x in case.inputs.items():
        sizes |= dict(zip(letters[n], np.shape(x)))
    free = [letter for letter in function.shuffled if sizes.get(letter, 1) > 1]
    if "P" in free and case.options.get("ties") == "first":
        free.remove("P")
    draw = Draw(len(case.id))
    return [{letter: np.argsort(draw.normal(sizes[letter])) for letter in free} for _ in range(ORDERS)] if free else []


def measure(case: Definition, upstream: dict, gap: dict[str, float]) -> dict[str, budgets.Measured]:
    """The budgets of a case.      gap: how far the oracle is in float64, by name

    What is lost is one number of rounding units: the most that the float32 runs lost in float32's, or that lies between
    the two float64 witnesses in float64's.  float16's and bfloat16's runs are taken as they are, and no better than that.
    """
    found = budgets.measure(lambda dtype: answers(case, upstream, dtype), FUNCTIONS[case.function].low)
    for name, m in found.items():
        lost = max(m.error["float32"] / budgets.EPS["float32"], gap[name] / budgets.EPS["float64"])
        for dtype in m.budget:
            unit = budgets.EPS["float64" if dtype == "float64" else "float32"]
            m.budget[dtype] = max(m.budget[dtype], budgets.SLACK * lost * unit)
    return found


def _torch():
    import torch

    return torch
