"""The report's pictures, as inline SVG: one line per tensor with its error and its budget on a log axis; loss curves."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7}
COLOURS = {"float64": "#0a58a6", "float32": "#00755a", "16-bit": "#a34500"}
FAILED = "#c00020"
LEGEND = (
    "In the charts below a dot is an error, the upright stroke its budget, the line between them what is left. Filled dots "
    "are the trainer's, open ones the reference's own replay of a frozen vector. Errors of exactly 0 stand left of the axis. "
    "Red is beyond the budget; grey proves nothing, its budget being a tenth of the scale or more."
)
LEFT, RIGHT, TOP, LINE = 300, 20, 40, 16  # pixels
WIDTH = 1100


def family(dtype: str) -> str:
    return dtype if dtype in COLOURS else "16-bit"


def errors(rows: Sequence[Mapping[str, Any]], failed: Mapping[str, Any] | None = None) -> str:
    """Rows in forward order, one line a tensor; the tensor that failed comes first, in red."""
    by_name: dict[str, list] = {}
    for row in rows:
        by_name.setdefault(row["name"], []).append(row)
    bad = [name for name, found in by_name.items() if any(not r["ok"] for r in found)]
    names = bad + [name for name in by_name if name not in bad]
    values = [float(r[k]) for r in rows for k in ("error", "budget")]
    finite = [v for v in values if 0 < v < math.inf]
    low = min(-17, math.floor(math.log10(min(finite, default=1e-17))))
    high = max(0, math.ceil(math.log10(max(finite, default=1))))
    zero, left = LEFT + 12, LEFT + 34                     # where 0 is drawn; where the axis begins

    def x(value):
        value = float(value)
        if value == 0:
            return float(zero)
        at = math.log10(value) if 0 < value < math.inf else math.inf
        return left + (WIDTH - RIGHT - left) * (min(max(at, low), high) - low) / (high - low)

    height = TOP + LINE * len(names) + 34
    bottom = TOP + LINE * len(names)
    out = [f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" font-size="11" '
           'font-family="system-ui, DejaVu Sans, Arial, sans-serif" aria-label="error and budget of each tensor, log scale">',
           f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>']
    for decade in range(low, high + 1):
        labelled = (decade - high) % 2 == 0
        at = x(10.0**decade)
        grey = "#d8d8d8" if labelled else "#efefef"
        out.append(f'<line x1="{at:.1f}" y1="{TOP - 4}" x2="{at:.1f}" y2="{bottom}" stroke="{grey}"/>')
        if labelled:
            label = "1" if decade == 0 else f"1e{decade}"
            out.append(f'<text x="{at:.1f}" y="{bottom + 14}" text-anchor="middle" fill="#333">{label}</text>')
    out.append(f'<text x="{zero}" y="{bottom + 14}" text-anchor="middle" fill="#333">0</text>')
    out.append(f'<text x="{(left + WIDTH - RIGHT) / 2:.0f}" y="{bottom + 29}" text-anchor="middle" fill="#333">'
               "error, as a fraction of the tensor's scale (log)</text>")
    for dtype, eps in EPS.items():
        colour = COLOURS[family(dtype)]
        out.append(f'<line x1="{x(eps):.1f}" y1="{TOP - 6}" x2="{x(eps):.1f}" y2="{bottom}" stroke="{colour}" '
                   'stroke-dasharray="2 4" stroke-opacity=".6"/>')
        out.append(f'<text x="{x(eps):.1f}" y="{TOP - 12}" text-anchor="middle" fill="{colour}">{dtype} eps</text>')
    for i, name in enumerate(names):
        y = TOP + LINE * i + LINE / 2
        red = name in bad
        if red:
            out.append(f'<rect x="0" y="{y - LINE / 2}" width="{WIDTH}" height="{LINE}" fill="#fdecee"/>')
        elif i % 2:
            out.append(f'<rect x="0" y="{y - LINE / 2}" width="{LEFT + 4}" height="{LINE}" fill="#f7f7f7"/>')
        shown = name if len(name) <= 46 else name[:20] + "…" + name[-25:]
        style = f'fill="{FAILED}" font-weight="bold"' if red else 'fill="#111"'
        out.append(f'<text x="{LEFT - 2}" y="{y + 4}" text-anchor="end" {style}>{html.escape(shown)}</text>')
        out += [_mark(row, x, y, failed) for row in by_name[name]]
    return "".join([*out, "</svg>"])


def same(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two rows are about one tensor."""
    return all(row[key] == other[key] for key in ("name", "side", "dtype"))


def _mark(row, x, y, failed):
    """The error's dot, the budget's stroke, a line between them, and all of it in words for who hovers."""
    error, budget, ok = float(row["error"]), float(row["budget"]), row["ok"]
    colour = FAILED if not ok else COLOURS[family(row["dtype"])] if row.get("proves", True) else "#999"
    at, limit = x(error), x(budget)
    words = f"{row['name']}, {row['side']}, {row['dtype']}: error {error:.3g}, budget {budget:.3g}; {row['where']}"
    hollow = row["side"] == "reference"
    parts = [f'<line x1="{at:.1f}" y1="{y}" x2="{limit:.1f}" y2="{y}" stroke="{colour}" stroke-width="{1.2 if ok else 3}" '
             f'stroke-opacity="{0.45 if ok else 1}"/>',
             f'<line x1="{limit:.1f}" y1="{y - 5}" x2="{limit:.1f}" y2="{y + 5}" stroke="{colour}" stroke-width="2"/>']
    if ok:
        fill = "#fff" if hollow else colour
        parts.append(f'<circle cx="{at:.1f}" cy="{y}" r="3.4" fill="{fill}" stroke="{colour}" stroke-width="1.4"/>')
    else:
        parts.append(f'<path d="M{at - 5:.1f} {y - 5}l10 10m0 -10l-10 10" stroke="{colour}" stroke-width="3"/>')
        label = f"{row['dtype']}: {error:.2g}" if failed and same(row, failed) else ""
        end = at > WIDTH - 140
        parts.append(f'<text x="{at + (-9 if end else 9):.1f}" y="{y + 4}" text-anchor="{"end" if end else "start"}" '
                     f'fill="{FAILED}" font-weight="bold" paint-order="stroke" stroke="#fdecee" stroke-width="5">'
                     f"{html.escape(label)}</text>")
    return f"<g><title>{html.escape(words)}</title>{''.join(parts)}</g>"


def curves(series: Mapping[str, Any]) -> str:
    """Lines over updates, with a band where there is one.      series: see report.py"""
    width, height, left, bottom, top = WIDTH, 320, 60, 40, 16
    lines = {name: [float(v) for v in values] for name, values in series["lines"].items()}
    band = [[float(a), float(b)] for a, b in series.get("band") or []]
    everything = [v for values in lines.values() for v in values] + [v for pair in band for v in pair]
    finite = [v for v in everything if math.isfinite(v)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    low, high = (low - 0.5, high + 0.5) if low == high else (low - 0.04 * (high - low), high + 0.04 * (high - low))
    count = max(2, *(len(values) for values in lines.values())) if lines else 2

    def at(i, value):
        value = min(max(value, low), high) if not math.isnan(value) else high
        return (f"{left + (width - left - 20) * i / (count - 1):.1f},"
                f"{height - bottom - (height - bottom - top) * (value - low) / (high - low):.1f}")

    out = [f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" font-size="11" '
           f'font-family="system-ui, DejaVu Sans, Arial, sans-serif" aria-label={_quoted(series["title"])}>',
           f'<rect width="{width}" height="{height}" fill="#fff"/>']
    for i in range(6):
        value = low + (high - low) * i / 5
        y = at(0, value).split(",")[1]
        out.append(f'<line x1="{left}" y1="{y}" x2="{width - 20}" y2="{y}" stroke="#e2e2e2"/>')
        out.append(f'<text x="{left - 6}" y="{float(y) + 4:.1f}" text-anchor="end" fill="#333">{value:.3g}</text>')
    for i in range(6):
        step = round((count - 1) * i / 5)
        out.append(f'<text x="{at(step, low).split(",")[0]}" y="{height - bottom + 15}" text-anchor="middle" fill="#333">'
                   f"{step + 1}</text>")
    out.append(f'<text x="{width / 2:.0f}" y="{height - 6}" text-anchor="middle" fill="#333">update</text>')
    middle = f"{height / 2:.0f}"
    out.append(f'<text x="14" y="{middle}" fill="#333" transform="rotate(-90 14 {middle})" text-anchor="middle">'
               f"{html.escape(series['y'])}</text>")
    if band:
        edge = [at(i, b) for i, (_, b) in enumerate(band)] + [at(i, a) for i, (a, _) in reversed(list(enumerate(band)))]
        out.append(f'<polygon points="{" ".join(edge)}" fill="#0a58a6" fill-opacity=".18"/>')
    styles = (("#8fbbe8", "", 6), ("#8a2b00", "", 1.4), ("#00755a", "3 3", 1.4))  # broad below, narrow above: both show
    for j, (name, values) in enumerate(lines.items()):
        colour, dash, thick = styles[j % len(styles)]
        points = " ".join(at(i, v) for i, v in enumerate(values))
        pen = f'stroke="{colour}" stroke-width="{thick}" stroke-dasharray="{dash}"'
        out.append(f'<polyline points="{points}" fill="none" {pen}/>')
        out.append(f'<line x1="{width - 190}" y1="{top + 12 + 16 * j}" x2="{width - 160}" y2="{top + 12 + 16 * j}" '
                   f"{pen}/>")
        out.append(f'<text x="{width - 154}" y="{top + 16 + 16 * j}" fill="#111">{html.escape(name)}</text>')
    return "".join([*out, "</svg>"])


def _quoted(text):
    return '"' + html.escape(str(text), quote=True) + '"'
