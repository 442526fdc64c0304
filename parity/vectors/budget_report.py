"""docs/budgets.md: `python -m parity.vectors.budget_report` measures, prints the tables and draws the figure."""

from pathlib import Path
from typing import Any

import numpy as np

from parity import vectors
from parity.vectors import runs, witnesses
from parity.vectors.budgets import EPS, PROVES, SLACK, error, to_float64
from parity.vectors.cases import definitions


def lost() -> dict[tuple[str, str], np.ndarray]:
    """What the frozen vectors say was lost, in units of rounding.      (level, dtype) -> one number a tensor"""
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


def proving() -> str:
    """What the frozen budgets of gradients can see: in Markdown, by level and dtype, and how many of them prove nothing."""
    frozen: dict[tuple[str, str], list[float]] = {}
    for case in vectors.load().values():
        for name, budget in case.budget.items():
            for dtype, allowed in budget.items() if name.startswith("grad.") else ():
                frozen.setdefault((case.level, dtype), []).append(allowed)
    lines = ["| level | dtype | gradients | median budget | prove nothing |", "| --- | --- | --- | --- | --- |"]
    for (level, dtype), found in frozen.items():
        blind = sum(x >= PROVES for x in found)
        lines.append(f"| {level} | {dtype} | {len(found)} | {np.median(found):.2g} | {blind} |")
    return "\n".join(lines)


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
    """Print what the frozen budgets see, measure, print the tables, draw docs/images/budgets.png."""
    print(proving() + "\n")
    found, ratios = lost(), others()
    print(tables(found, ratios))
    figure(Path(__file__).parents[2] / "docs" / "images" / "budgets.png", found, ratios)


if __name__ == "__main__":
    main()
