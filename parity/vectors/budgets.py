"""One measure of how far two arrays are apart, and how far they may be.

error  = max |got - want| / scale, one number per tensor, NaN where and only where NaN is expected
scale  = the largest |want| of the tensor; where that is below FRACTION of its family's largest (all of it cancels, or is
         exactly zero), the family's largest instead.  A family: the gradients of a case; its logits and losses.
budget = SLACK * max(measured error of the reference's own run in that dtype, one unit of rounding)
A budget of PROVES or more of the scale proves nothing: with it a tensor of zeros, or half the tensor, could pass.
A gradient has a second measure, its factor: how long it is along the expected one.  Rounding has random signs, which cancel
in it, so that it sees what all entries share far below what one entry may be off.
docs/budgets.md shows what was measured and why SLACK and FRACTION have their sizes.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}  # from 1 to the next number
SLACK = 8.0
FRACTION = 2.0**-12
PROVES = 0.1  # from this budget on, in parts of the scale, a comparison proves nothing
LOW = ("float32", "float16", "bfloat16")


def to_float64(x: Any) -> np.ndarray:
    """Any array, on any device and of any dtype (torch's bfloat16 too), as float64 in NumPy."""
    if hasattr(x, "detach"):
        return x.detach().to("cpu").double().numpy()
    if hasattr(x, "get") and not isinstance(x, np.ndarray):  # CuPy
        x = x.get()
    return np.asarray(x).astype(np.float64)


def largest(x: Any) -> float:
    """The largest finite |x|, 0 for an empty array."""
    x = np.abs(to_float64(x))
    return float(np.max(np.where(np.isfinite(x), x, 0), initial=0))


def scale(want: Any, family: float | Iterable[Any] = 0.0) -> float:
    """What an error of `want` is measured by.      family: the tensors of its kind in the case, or their largest entry

    The largest |want|; where that is below FRACTION of the family's largest, the family's; 1 where all is zero.
    """
    top = float(family) if isinstance(family, int | float) else max((largest(x) for x in family), default=0.0)
    own = largest(want)
    return (own if own > FRACTION * top else top) or 1.0


def family(name: str) -> str:
    """grad.* is one family; logits and losses are another, all being in nats; so are out.params.*, out.m.* and out.v.* after
    training.  Any other tensor stands alone."""
    first, _, rest = name.partition(".")
    if first == "grad":
        return first
    second = rest.partition(".")[0]
    if first == "out" and second in ("params", "m", "v"):
        return f"{first}.{second}"
    return "nats" if name.rpartition(".")[2].startswith(("logits", "loss")) else name


def all_scales(want: Mapping[str, Any]) -> dict[str, float]:
    """The scale of every tensor of a case, by name."""
    top: dict[str, float] = {}
    for name, x in want.items():
        top[family(name)] = max(top.get(family(name), 0.0), largest(x))
    return {name: scale(x, top[family(name)]) for name, x in want.items()}


def error(got: Any, want: Any, scale: float) -> float:
    """max |got - want| / scale; infinite where one is NaN or infinite and the other is not.  ValueError on another shape."""
    got, want = to_float64(got), to_float64(want)
    if got.shape != want.shape:
        raise ValueError(f"expected shape {want.shape}, got {got.shape}")
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.where(same, 0.0, np.abs(got - want))
    return float(np.max(np.where(np.isnan(apart), math.inf, apart), initial=0) / scale)


def from_measured(error: float, dtype: str) -> float:
    """The budget for a measured error.      dtype: what the result is returned in; its unit of rounding is the least error"""
    return SLACK * max(float(error), EPS[dtype])


def float64_from(error32: float) -> float:
    """The float64 budget: what float32 lost, in its units, is the condition; the same number of float64's units."""
    return from_measured(error32 * EPS["float64"] / EPS["float32"], "float64")


def factor(got: Any, want: Any) -> float:
    """|<got, want> / <want, want> - 1|: by how much got is longer or shorter along want; 0 where want is all zero."""
    got, want = to_float64(got), to_float64(want)
    square = float(np.sum(want * want))
    if not square > 0:
        return 0.0 if square == 0 else math.inf
    with np.errstate(invalid="ignore", over="ignore"):
        off = abs(float(np.sum((got - want) * want)) / square)
    return math.inf if math.isnan(off) else off


def factor_noise(got: Any, want: Any) -> float:
    """How far rounding may move the factor: what it did in this run, and no less than its errors give with random signs."""
    got, want = to_float64(got), to_float64(want)
    square = float(np.sum(want * want))
    if not 0 < square < math.inf:
        return 0.0
    parts = (got - want) * want
    return max(abs(float(np.sum(parts))), math.sqrt(float(np.sum(parts * parts)))) / square


def factor_unit(want: Any) -> float:
    """One unit of rounding in every entry, with random signs, in parts of the factor: 1 for a number alone, less for many."""
    want = to_float64(want)
    square = float(np.sum(want * want))
    squares = want * want
    return math.sqrt(float(np.sum(squares * squares))) / square if 0 < square < math.inf else 1.0


def factor_budgets(want: Mapping[str, np.ndarray], runs: Iterable[Mapping[str, Any]], unit: float) -> dict[str, float]:
    """For each gradient how far its factor may be off, SLACK included.

    Its noise in these runs; what factors of its kind ("query.weight", in any block) or of all gradients are off by, root mean
    square, for one number can be small by luck; one unit of rounding.  These are independent: their squares add up.
    """
    runs = list(runs)
    off: dict[str, list[float]] = {"": []}
    for name in want:
        if name.startswith("grad.") and want[name].size > 1:
            found = [x for x in (factor(run[name], want[name]) for run in runs) if x < math.inf]
            off.setdefault(kind(name), []).extend(found)
            off[""] += found
    shared = {each: math.sqrt(sum(x * x for x in found) / max(1, len(found))) for each, found in off.items()}
    return {
        name: SLACK * math.hypot(max(factor_noise(run[name], x) for run in runs), max(shared[""], shared.get(kind(name), 0.0)),
                                 unit * factor_unit(x))
        for name, x in want.items() if name.startswith("grad.")
    }  # fmt: skip


def kind(name: str) -> str:
    """The last two parts of a parameter's name: alike in all blocks."""
    return ".".join(name.split(".")[-2:])


@dataclass(frozen=True)
class Measured:
    """One tensor: its float64 value, its scale, and by dtype the largest error of the runs and the budget (float64 too).

    along: by dtype, how far the factor of a gradient may be off.
    """

    want: np.ndarray
    scale: float
    error: dict[str, float]
    budget: dict[str, float]
    along: dict[str, float] = field(default_factory=dict)


def measure(run: Callable[[str], Iterable[Mapping[str, Any]]], dtypes: Iterable[str] = LOW) -> dict[str, Measured]:
    """Budgets of any function, measured now.

    run(dtype) gives one dict of arrays by name, or several, for one and the same input: NumPy and torch, sums in another
    order.  run("float64") gives what is wanted.
    """
    want = {name: to_float64(x) for name, x in _several(run("float64"))[0].items()}
    scale_of = all_scales(want)
    errors: dict[str, dict[str, float]] = {name: {} for name in want}
    budget: dict[str, dict[str, float]] = {name: {} for name in want}
    along: dict[str, dict[str, float]] = {name: {} for name in want}
    for dtype in dtypes:
        runs = _several(run(dtype))
        for name in want:
            errors[name][dtype] = max(error(got[name], want[name], scale_of[name]) for got in runs)
            budget[name][dtype] = from_measured(errors[name][dtype], dtype_of(runs[0][name], dtype))
        for name, allowed in factor_budgets(want, runs, EPS[dtype]).items():
            along[name][dtype] = allowed
            if dtype == "float32":
                along[name]["float64"] = allowed * EPS["float64"] / EPS["float32"]
        if dtype == "float32":
            for name in want:
                budget[name]["float64"] = float64_from(errors[name]["float32"])
    return {name: Measured(want[name], scale_of[name], errors[name], budget[name], along[name]) for name in want}


def dtype_of(x: Any, default: str) -> str:
    """The name of an array's dtype where it is one of EPS, else `default`."""
    name = str(getattr(x, "dtype", default)).removeprefix("torch.")
    return name if name in EPS else default


def _several(runs):
    return [runs] if isinstance(runs, Mapping) else list(runs)
