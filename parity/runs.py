"""The reference run in other dtypes, on other arrays and with its sums in another order: what budgets are measured from."""

import itertools

import numpy as np

from parity import budgets
from parity.cases import FUNCTIONS
from parity.cases.core import Definition, Draw
from parity.vectors import zero_padding
from parity.witnesses import padded_axes, reference

ORDERS = 3  # besides the given one


def answers(case: Definition, upstream: dict, dtype: str) -> list[dict]:
    """Answers to one case: NumPy (where it has the dtype) and torch, each in the given order and in ORDERS others."""
    kinds = ["numpy", "torch"] if dtype in ("float64", "float32") else ["torch"]
    orders = [{}] if dtype == "float64" else [{}, *shuffles(case)]
    return [answer(case, upstream, dtype, kind, order) for kind, order in itertools.product(kinds, orders)]


def answer(case: Definition, upstream: dict, dtype: str, kind: str, order: dict) -> dict:
    """One answer; what `order` shuffles on the way in is put back on the way out."""
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

    inputs = {n: cast(shuffled(n, x), kind, dtype) for n, x in case.inputs.items()}
    upstream = {n: cast(shuffled(n, x), kind, dtype) for n, x in upstream.items()}
    with np.errstate(all="ignore"):
        got = reference(case, inputs, upstream)
    mask = case.inputs.get("mask")
    result = {}
    for name, x in got.items():
        returned = budgets.dtype_of(x, dtype)
        x = budgets.to_float64(restored(name.partition(".")[2], x))
        result[name] = Answer(zero_padding(x, mask, padded_axes(case, name)), returned)
    return result


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
    x = _torch().tensor(np.ascontiguousarray(x)).reshape(np.shape(x))
    return x.to(getattr(_torch(), dtype)) if floating else x


def shuffles(case: Definition) -> list[dict]:
    """Orders of every dimension that has none, by its letter."""
    function, sizes = FUNCTIONS[case.function], {}
    letters = function.letters(case.options)
    for n, x in case.inputs.items():
        sizes |= dict(zip(letters[n], np.shape(x)))
    free = [letter for letter in function.shuffled if sizes.get(letter, 1) > 1]
    if "P" in free and case.options.get("ties") == "first":
        free.remove("P")
    draw = Draw(len(case.id))
    return [{letter: np.argsort(draw.normal(sizes[letter])) for letter in free} for _ in range(ORDERS)] if free else []


def measure(case: Definition, upstream: dict) -> dict[str, budgets.Measured]:
    """The budgets of a case."""
    return budgets.measure(lambda dtype: answers(case, upstream, dtype))


def _torch():
    import torch

    return torch
