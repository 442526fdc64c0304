"""What the ladder would notice: for each rung and precision, the smallest change of a gradient's size that leaves a budget.

Each gradient's row carries `notices`, computed from this run's own numbers (rungs/judge.py): had this gradient been 1 + x or
1 - x times as large, some comparison of it would have left a budget that proves something.  Of several cases of one gradient
the one that sees most counts.  Here they are brought together.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

AIMS = {"float64": 1e-12, "float32": 1e-4, "float16": 0.05, "bfloat16": 0.05, "mixed": 0.05}
TITLE = "The smallest factor 1 + x on a gradient that is noticed: x, median and worst of all gradients"
HEAD = ["rung", *AIMS]


def table(rungs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each rung and dtype with gradients: {rung, dtype, gradients, zero, median, worst, name, side}.

    gradients: how many, by name and side; zero: how many more are exactly zero, which no factor changes; name, side: of the
    worst.  median, worst: infinite where no budget proves anything.
    """
    found = []
    for rung in rungs:
        for dtype in AIMS:
            rows = [row for row in rung["rows"] if row["dtype"] == dtype and row.get("notices") is not None and row["ok"]]
            seen = [row for row in rows if not math.isnan(float(row["notices"]))]
            if seen:
                worst = max(seen, key=lambda row: float(row["notices"]))
                found.append({
                    "rung": rung["name"], "dtype": dtype, "gradients": len(seen), "zero": len(rows) - len(seen),
                    "median": statistics.median(float(row["notices"]) for row in seen), "worst": float(worst["notices"]),
                    "name": worst["name"], "side": worst["side"],
                })  # fmt: skip
    return found


def cells(entries: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The table's cells: a line for each rung, "median; worst" in each precision."""
    lines = []
    for rung in dict.fromkeys(entry["rung"] for entry in entries):
        by_dtype = {entry["dtype"]: entry for entry in entries if entry["rung"] == rung}
        lines.append([rung, *(say(by_dtype[dtype]) if dtype in by_dtype else "" for dtype in AIMS)])
    return lines


def say(entry: Mapping[str, Any]) -> str:
    return "; ".join(number(float(entry[key])) for key in ("median", "worst"))


def number(x: float) -> str:
    """Small ones as 1.2e-14, per cent from 0.1 % on; one that nothing notices in words."""
    return "none" if math.isinf(x) else f"{x:.1%}" if x >= 1e-3 else f"{x:.0e}"


def remarks(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which aims are met in this run, and where one is not, by which gradient."""
    said = []
    for dtype, aim in AIMS.items():
        mine = [entry for entry in entries if entry["dtype"] == dtype]
        late = [entry for entry in mine if not float(entry["worst"]) <= aim]
        if mine:
            where = "; ".join(f"{x['rung']}: {x['name']} ({x['side']}) {number(float(x['worst']))}" for x in late)
            outcome = f"missed by the worst gradient of {where}" if late else "met by every gradient"
            said.append(f"{dtype}, aim {number(aim)}: {outcome}")
    zero = sum(entry["zero"] for entry in entries)
    return said + ([f"{zero} gradients are exactly zero, and no factor changes them"] if zero else [])
