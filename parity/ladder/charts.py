"""The report's pictures, as inline SVG: an overview; a line per tensor, error and budget on a log axis; loss curves.

Colours are the page's CSS variables, so that a picture is light or dark as the page is; what follows the comma stands in
where a picture is looked at alone.
"""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7}
COLOURS = {"float64": "var(--float64,#0a58a6)", "float32": "var(--float32,#00755a)", "16-bit": "var(--bits16,#a34500)"}
FAILED = "var(--failed,#c00020)"
ALARM, STRIPE = "var(--alarm,#fdecee)", "var(--stripe,#f2f2f2)"
INK, SOFT, PAPER = "var(--ink,#111)", "var(--soft,#333)", "var(--paper,#fff)"
AXIS, GRID, FAINT = "var(--axis,#555)", "var(--grid,#c2c2c2)", "var(--faint,#e4e4e4)"
LEGEND = (
    "In the charts below a dot is an error, the upright stroke its budget, the line between them what is left. Filled dots "
    "are the trainer's, open ones the reference's own replay of a frozen vector. Errors of exactly 0 stand left of the axis. "
    "Red is beyond the budget; grey proves nothing, its budget being a tenth of the scale or more."
)
LEFT, RIGHT, TOP, LINE = 300, 20, 52, 16  # pixels
WIDTH = 1100
FONT = 'font-family="system-ui, DejaVu Sans, Arial, sans-serif"'


def overview(rungs: Sequence[Mapping[str, Any]]) -> str:
    """A bar for each rung: its comparison that came closest to the budget, as a share of it.

    rungs: {name, said, share, dtype, ok}; share None where nothing was compared, and then `said` says why
    """
    left, unit, line, top = 130, 4.6, 24, 26              # pixels: where 0 is, one per cent, a rung, above the first
    bottom, end = top + line * len(rungs), left + 100 * unit
    out = [f'<svg viewBox="0 0 {WIDTH} {bottom + 40}" width="{WIDTH}" height="{bottom + 40}" role="img" font-size="12" {FONT} '
           'aria-label="of each rung, the comparison closest to its budget, as a share of the budget">',
           f'<rect width="{WIDTH}" height="{bottom + 40}" fill="{PAPER}"/>']
    for per_cent in range(0, 101, 25):
        x, edge = left + per_cent * unit, per_cent in (0, 100)
        out.append(f'<line x1="{x:.1f}" y1="{top - 6}" x2="{x:.1f}" y2="{bottom + 4}" stroke="{AXIS if edge else GRID}" '
                   f'stroke-width="{2 if edge else 1}"/>')
        out.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle" fill="{INK}">{per_cent} %</text>')
    out.append(f'<line x1="{left}" y1="{bottom + 4}" x2="{end:.1f}" y2="{bottom + 4}" stroke="{AXIS}" stroke-width="2"/>')
    out.append(f'<text x="{end:.1f}" y="{top - 11}" text-anchor="middle" fill="{INK}">the budget</text>')
    out.append(f'<text x="{left + 50 * unit:.1f}" y="{bottom + 34}" text-anchor="middle" fill="{INK}">'
               "error of the comparison closest to its budget, as a share of the budget</text>")
    for i, rung in enumerate(rungs):
        y = top + line * i
        out.append(f'<text x="{left - 8}" y="{y + 16}" text-anchor="end" fill="{INK}">{html.escape(rung["name"])}</text>')
        at, colour = left + 6.0, SOFT
        if rung["share"] is not None:
            colour = COLOURS[family(rung["dtype"])] if rung["ok"] else FAILED
            width = 100 * unit * min(max(rung["share"], 0.0), 1.06) if math.isfinite(rung["share"]) else 106 * unit
            out.append(f'<rect x="{left}" y="{y + 5}" width="{max(width, 1):.1f}" height="14" fill="{colour}"/>')
            at += width
        out.append(f'<text x="{at:.1f}" y="{y + 16}" fill="{INK if rung["ok"] else FAILED}" paint-order="stroke" '
                   f'stroke="{PAPER}" stroke-width="4">{html.escape(rung["said"])}</text>')
    return "".join([*out, "</svg>"])


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
           f'{FONT} aria-label="error and budget of each tensor, log scale">',
           f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>']
    numbered = (TOP - 10, bottom + 14)                    # the axis' numbers stand above and below
    for decade in range(low, high + 1):
        labelled = (decade - high) % 2 == 0
        at = x(10.0**decade)
        pen = f'stroke="{GRID if labelled else FAINT}"'
        out.append(f'<line x1="{at:.1f}" y1="{TOP - 6}" x2="{at:.1f}" y2="{bottom + 2}" {pen}/>')
        if labelled:
            label = "1" if decade == 0 else f"1e{decade}"
            out += [f'<text x="{at:.1f}" y="{y}" text-anchor="middle" fill="{INK}">{label}</text>' for y in numbered]
    out += [f'<text x="{zero}" y="{y}" text-anchor="middle" fill="{INK}">0</text>' for y in numbered]
    out += [f'<line x1="{LEFT + 2}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="{AXIS}" stroke-width="1.5"/>'
            for y in (TOP - 4, bottom + 2)]
    out.append(f'<text x="{(left + WIDTH - RIGHT) / 2:.0f}" y="{bottom + 29}" text-anchor="middle" fill="{INK}">'
               "error, as a fraction of the tensor's scale (log)</text>")
    for dtype, eps in EPS.items():
        colour = COLOURS[family(dtype)]
        out.append(f'<line x1="{x(eps):.1f}" y1="{TOP - 24}" x2="{x(eps):.1f}" y2="{bottom}" stroke="{colour}" '
                   'stroke-dasharray="2 4"/>')
        out.append(f'<text x="{x(eps):.1f}" y="{TOP - 28}" text-anchor="middle" fill="{colour}">{dtype} eps</text>')
    for i, name in enumerate(names):
        y = TOP + LINE * i + LINE / 2
        red = name in bad
        if red:
            out.append(f'<rect x="0" y="{y - LINE / 2}" width="{WIDTH}" height="{LINE}" fill="{ALARM}"/>')
        elif i % 2:
            out.append(f'<rect x="0" y="{y - LINE / 2}" width="{LEFT + 4}" height="{LINE}" fill="{STRIPE}"/>')
        shown = name if len(name) <= 46 else name[:20] + "…" + name[-25:]
        style = f'fill="{FAILED}" font-weight="bold"' if red else f'fill="{INK}"'
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
        fill = PAPER if hollow else colour
        parts.append(f'<circle cx="{at:.1f}" cy="{y}" r="3.4" fill="{fill}" stroke="{colour}" stroke-width="1.4"/>')
    else:
        parts.append(f'<path d="M{at - 5:.1f} {y - 5}l10 10m0 -10l-10 10" stroke="{colour}" stroke-width="3"/>')
        label = f"{row['dtype']}: {error:.2g}" if failed and same(row, failed) else ""
        end = at > WIDTH - 140
        parts.append(f'<text x="{at + (-9 if end else 9):.1f}" y="{y + 4}" text-anchor="{"end" if end else "start"}" '
                     f'fill="{FAILED}" font-weight="bold" paint-order="stroke" stroke="{ALARM}" stroke-width="5">'
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
           f'{FONT} aria-label={_quoted(series["title"])}>',
           f'<rect width="{width}" height="{height}" fill="{PAPER}"/>']
    for i in range(6):
        value = low + (high - low) * i / 5
        y = at(0, value).split(",")[1]
        out.append(f'<line x1="{left}" y1="{y}" x2="{width - 20}" y2="{y}" stroke="{GRID}"/>')
        out.append(f'<text x="{left - 6}" y="{float(y) + 4:.1f}" text-anchor="end" fill="{INK}">{value:.3g}</text>')
    for i in range(6):
        step = round((count - 1) * i / 5)
        out.append(f'<text x="{at(step, low).split(",")[0]}" y="{height - bottom + 15}" text-anchor="middle" fill="{INK}">'
                   f"{step + 1}</text>")
    for x2, y2 in ((left, top), (width - 20, height - bottom)):  # both axes, from their corner
        out.append(f'<line x1="{left}" y1="{height - bottom}" x2="{x2}" y2="{y2}" stroke="{AXIS}" stroke-width="1.5"/>')
    out.append(f'<text x="{width / 2:.0f}" y="{height - 6}" text-anchor="middle" fill="{INK}">update</text>')
    middle = f"{height / 2:.0f}"
    out.append(f'<text x="14" y="{middle}" fill="{INK}" transform="rotate(-90 14 {middle})" text-anchor="middle">'
               f"{html.escape(series['y'])}</text>")
    if band:
        edge = [at(i, b) for i, (_, b) in enumerate(band)] + [at(i, a) for i, (a, _) in reversed(list(enumerate(band)))]
        out.append(f'<polygon points="{" ".join(edge)}" fill="{COLOURS["float64"]}" fill-opacity=".22"/>')
    broad = "var(--broad,#8fbbe8)"                        # broad below, narrow above: both show
    styles = ((broad, "", 6), (COLOURS["16-bit"], "", 1.4), (COLOURS["float32"], "3 3", 1.4))
    for j, (name, values) in enumerate(lines.items()):
        colour, dash, thick = styles[j % len(styles)]
        points = " ".join(at(i, v) for i, v in enumerate(values))
        pen = f'stroke="{colour}" stroke-width="{thick}" stroke-dasharray="{dash}"'
        out.append(f'<polyline points="{points}" fill="none" {pen}/>')
        out.append(f'<line x1="{width - 190}" y1="{top + 12 + 16 * j}" x2="{width - 160}" y2="{top + 12 + 16 * j}" '
                   f"{pen}/>")
        out.append(f'<text x="{width - 154}" y="{top + 16 + 16 * j}" fill="{INK}">{html.escape(name)}</text>')
    return "".join([*out, "</svg>"])


def _quoted(text):
    return '"' + html.escape(str(text), quote=True) + '"'
