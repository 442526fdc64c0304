"""One measure of how far two arrays are apart, and how far they may be.

error  = max |got - want| / scale, one number per tensor, NaN where and only where NaN is expected
scale  = the largest |want| of the tensor; where that is below FRACTION of its family's largest (all of it cancels, or is
         exactly zero), the family's largest instead.  A family: the gradients of a case; its logits and losses.
budget = SLACK * max(measured error of the reference's own run in that dtype, one unit of rounding)
docs/budgets.md shows what was measured and why SLACK and FRACTION have their sizes.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}  # from 1 to the next number
SLACK = 8.0
FRACTION = 2.0**-12
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


@dataclass(frozen=True)
class Measured:
    """One tensor: its float64 value, its scale, and by dtype the largest error of the runs and the budget (float64 too)."""

    want: np.ndarray
    scale: float
    error: dict[str, float]
    budget: dict[str, float]


def measure(run: Callable[[str], Iterable[Mapping[str, Any]]], dtypes: Iterable[str] = LOW) -> dict[str, Measured]:
    """Budgets of any function, measured now.

    run(dtype) gives one dict of arrays by name, or several, for one and the same input: NumPy and torch, sums in another
    order.  run("float64") gives what is wanted.
    """
    want = {name: to_float64(x) for name, x in _several(run("float64"))[0].items()}
    scale_of = all_scales(want)
    errors: dict[str, dict[str, float]] = {name: {} for name in want}
    budget: dict[str, dict[str, float]] = {name: {} for name in want}
    for dtype in dtypes:
        runs = _several(run(dtype))
        for name in want:
            errors[name][dtype] = max(error(got[name], want[name], scale_of[name]) for got in runs)
            budget[name][dtype] = from_measured(errors[name][dtype], dtype_of(runs[0][name], dtype))
        if dtype == "float32":
            for name in want:
                budget[name]["float64"] = float64_from(errors[name]["float32"])
    return {name: Measured(want[name], scale_of[name], errors[name], budget[name]) for name in want}


def dtype_of(x: Any, default: str) -> str:
    """The name of an array's dtype where it is one of EPS, else `default`."""
    name = str(getattr(x, "dtype", default)).removeprefix("torch.")
    return name if name in EPS else default


def _several(runs):
    return [runs] if isinstance(runs, Mapping) else list(runs)


# --- docs/budgets.md: `python -m parity.vectors.budgets` measures, prints the tables and draws the figure ------------------


def lost() -> dict[tuple[str, str], np.ndarray]:
    """What the frozen vectors say was lost, in units of rounding.      (level, dtype) -> one number a tensor"""
    from parity import vectors

    found: dict[tuple[str, str], list[float]] = {}
    for case in vectors.load().values():
        for budget in case.budget.values():
            for dtype, allowed in budget.items():
                found.setdefault((case.level, dtype), []).append(allowed / SLACK / EPS[dtype])
    return {key: np.array(values) for key, values in found.items()}


def others() -> dict[str, list[tuple[float, str]]]:
    """How far other sound implementations go in float32, in parts of the measured error: (ratio, "case tensor") each.

    "torch arrays": sparc_ref on torch, against what was measured on NumPy alone.  "oracle": against what was measured in all,
    which has no float32 run of the oracle in it.  "float64": the oracle's distance from the manual gradients, likewise.
    """
    from parity import vectors
    from parity.vectors import runs, witnesses
    from parity.vectors.cases import definitions

    frozen = vectors.load()
    ratios: dict[str, list[tuple[float, str]]] = {"torch arrays": [], "oracle": [], "float64": []}
    for case in definitions():
        known = frozen[case.id]
        if known.level == "steps":
            continue
        upstream = {n[3:]: x for n, x in known.tensors.items() if n.startswith("ct.")}
        on_numpy = [runs.answer(case, upstream, "float32", "numpy", order) for order in ({}, *runs.shuffles(case))]
        on_numpy += [runs.answer(case, upstream, "float64", "numpy", moved=moved) for moved in runs.nudged(case)]
        on_torch = runs.answer(case, upstream, "float32", "torch")
        with np.errstate(all="ignore"):
            oracles = {dtype: witnesses.oracle(case, upstream, dtype) for dtype in ("float32", "float64")}
        for n, budget in known.budget.items():
            want, size, unit = known.tensors[n], known.scale[n], EPS["float32"]

            def off(x, n=n, want=want, size=size, known=known):
                x = vectors.zero_padding(to_float64(x), known.tensors.get("in.mask"), known.padding.get(n, ()))
                return error(x, want, size)

            name = f"{case.id} {n}"
            ratios["torch arrays"].append((off(on_torch[n]) / max(unit, *(off(x[n]) for x in on_numpy)), name))
            ratios["oracle"].append((off(oracles["float32"][n]) / (budget["float32"] / SLACK), name))
            ratios["float64"].append((off(oracles["float64"][n]) / (budget["float64"] / SLACK), name))
    return ratios


def tables(found: dict[tuple[str, str], np.ndarray], ratios: dict[str, list[tuple[float, str]]]) -> str:
    """Both measurements in Markdown."""
    lines = ["| level | dtype | tensors | median | 90 % | 99 % | most |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for level in dict.fromkeys(level for level, _ in found):
        for dtype in EPS:
            x = found.get((level, dtype))
            if x is not None and dtype != "float64":
                numbers = " | ".join(f"{q:.3g}" for q in np.quantile(x, (0.5, 0.9, 0.99, 1)))
                lines.append(f"| {level} | {dtype} | {len(x)} | {numbers} |")
    lines += ["", "| implementation | tensors | median | 90 % | 99 % | 99.9 % | most | where |", "| --- " * 8 + "|"]
    for name, pairs in ratios.items():
        numbers = " | ".join(f"{q:.2g}" for q in np.quantile([r for r, _ in pairs], (0.5, 0.9, 0.99, 0.999, 1)))
        lines.append(f"| {name} | {len(pairs)} | {numbers} | `{max(pairs)[1]}` |")
    return "\n".join(lines)


def figure(path: Any, found: dict[tuple[str, str], np.ndarray], ratios: dict[str, list[tuple[float, str]]]) -> None:
    """Left: what was lost, by level and dtype.  Right: how often another implementation goes how much further."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = {"float32": "#1b6ca8", "float16": "#d98a00", "bfloat16": "#a23b72"}
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), width_ratios=(1.35, 1), constrained_layout=True)
    levels = list(dict.fromkeys(level for level, _ in found))
    for i, level in enumerate(levels):
        for j, (dtype, colour) in enumerate(colours.items()):
            x = found.get((level, dtype))
            if x is None:
                continue
            low, quarter, half, three, high = np.quantile(x, (0.01, 0.25, 0.5, 0.75, 0.99))
            y = i + 0.24 * (j - 1)
            left.plot([low, high], [y, y], color=colour, linewidth=1.2)
            left.plot([quarter, three], [y, y], color=colour, linewidth=7, alpha=0.45, solid_capstyle="butt")
            left.plot(half, y, "o", color=colour, markersize=5, label=dtype if i == 1 else None)
            left.plot(x.max(), y, "x", color=colour, markersize=6)
    left.set(xscale="log", yticks=range(len(levels)), yticklabels=levels, ylim=(-0.5, len(levels) + 0.6),
             xlabel="units of rounding lost (budget / slack / eps); below 1: computed in float32 inside",
             title="What the reference's own runs lose, tensor by tensor")
    left.invert_yaxis()
    left.axvline(1, color="#999", linewidth=0.8)
    left.grid(axis="x", color="#e5e5e5")
    left.set_axisbelow(True)
    how = "dot: median, bar: middle half, line: 1 to 99 %, cross: most"
    left.legend(loc="lower left", frameon=False, ncols=3, fontsize=9, title=how, title_fontsize=9)
    named = {"torch arrays": ("#1b6ca8", "sparc_ref on torch arrays"), "oracle": ("#c0392b", "the oracle, float32"),
             "float64": ("#555555", "the oracle, float64")}
    for key, (colour, words) in named.items():
        x = np.sort([max(r, 1e-3) for r, _ in ratios[key]])
        right.step(x, 1 - np.arange(len(x)) / len(x), where="post", color=colour, label=words)
        right.plot(x[-1], 1 / len(x), "x", color=colour)
    right.axvline(SLACK, color="black", linestyle="--", linewidth=1)
    right.text(SLACK * 1.08, 0.3, f"slack {SLACK:g}", rotation=90, va="center")
    right.set(xscale="log", yscale="log", xlim=(0.02, 20), xlabel="error, in parts of the measured error",
              ylabel="share of tensors with more", title="How much further other sound code goes")
    right.grid(color="#e5e5e5")
    right.legend(loc="lower left", frameon=False)
    fig.savefig(path, dpi=130)
    plt.close(fig)


def main() -> None:
    """Measure, print the tables, draw docs/images/budgets.png."""
    from pathlib import Path

    found, ratios = lost(), others()
    print(tables(found, ratios))
    figure(Path(__file__).parents[2] / "docs" / "images" / "budgets.png", found, ratios)


if __name__ == "__main__":
    main()
