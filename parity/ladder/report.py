"""One results.json, four ways to read it: a table in the terminal, Markdown, JUnit XML, and a page in one file.

What `python -m parity ladder` writes to results.json, and all that the renderings here know:

    schema    2
    title     "Parity ladder"
    passed    true when nothing failed and at least one rung passed; a rung that was not run is no failure, and is named
              wherever the verdict is; where none was run, nothing is passed
    preset, device, command, started (ISO 8601), seconds
    settings  {name: value}: seed, threads, dtypes, TF32 state, sizes, output folder: all that was in effect
    versions  {name: value}: python, numpy, torch, cupy, sparc_ref, platform, processor, gpu
    rungs     [{name, what, status "passed" | "failed" | "not run", reason, cannot, seconds, compared, blind, notes [text],
                rows [row], series null | {title, y, lines {name: [number]}, band [[low, high]]}}]
              cannot: not run because this machine lacks something; blind: how many comparisons prove nothing
    row       {name, side, dtype, error, budget, ok, proves, must_leave, where, note, notices, count, blind}, in forward
              order.  A row is the worst of `count` comparisons of tensors of this name: error and budget are fractions of the
              tensor's scale, or of a gradient's length ("as a whole"); `must_leave` marks a planted error that has to be seen,
              and then ok means error > budget; proves: false where the budget is so wide that being within it says nothing,
              `blind` of the count; notices: null, or the smallest change of this gradient's size that is seen
    sensitivity  [{rung, dtype, gradients, zero, median, worst, name, side}], see sensitivity.py
    failure   null | {rung, row, float64 null | {error, budget}, verdict}: the first tensor that left its budget, and what
              the same comparison gives in float64

Numbers that JSON cannot hold are the texts "nan", "inf" and "-inf".  `number` reads them.
"""

import html
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from parity.ladder import charts, sensitivity

GROUPS = {"float64": "float64", "float32": "float32", "float16": "16-bit", "bfloat16": "16-bit", "mixed": "16-bit"}
COLUMNS = ("float64", "float32", "16-bit")


def write(results: Mapping[str, Any], folder: str | os.PathLike) -> dict[str, Path]:
    """Write results.json, report.md, report.html and junit.xml; old ones are replaced one by one, each at once.  -> paths"""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "results.json": json.dumps(plain(results), indent=1, allow_nan=False) + "\n",
        "report.md": markdown(results),
        "junit.xml": junit(results),
        "report.html": page(results),
    }
    paths = {}
    for name, text in texts.items():
        paths[name] = folder / name
        part = folder / f".{name}.{os.getpid()}.part"
        try:
            part.write_text(text, encoding="utf-8", errors="replace")
            os.replace(part, paths[name])
        finally:
            part.unlink(missing_ok=True)
    return paths


def plain(x: Any) -> Any:
    """What JSON can hold: NumPy's numbers as Python's, what is not finite as text."""
    if isinstance(x, Mapping):
        return {str(key): plain(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [plain(value) for value in x]
    if isinstance(x, bool | str) or x is None:
        return x
    if isinstance(x, int):
        return int(x)
    if hasattr(x, "item"):
        return plain(x.item())
    if isinstance(x, float):
        return x if math.isfinite(x) else str(x)
    return str(x)


def number(x: Any) -> float:
    """A number of results.json, which writes what is not finite as text."""
    return float(x)


# ------------------------------------------------------------------------------------------------------- what it says


def verdict(results: Mapping[str, Any]) -> str:
    """The outcome in one sentence."""
    rungs = results["rungs"]
    ran = [r for r in rungs if r["status"] != "not run"]
    skipped = [r["name"] for r in rungs if r["status"] == "not run"]
    left = f"; NOT RUN: {', '.join(skipped)}" if skipped else ""
    if results["failure"]:
        f = results["failure"]
        return f"Failed at {f['rung']}: {describe(f['row'])}{left}"
    if not ran:
        return f"Nothing was run, so nothing is passed{left}"
    if not results["passed"]:
        return f"Failed: {', '.join(r['name'] for r in rungs if r['status'] == 'failed')}{left}"
    worst = max((row for r in ran for row in r["rows"] if row["proves"] and not row["must_leave"]), key=headroom, default=None)
    closest = f"; the closest to its budget is {worst['name']} at {headroom(worst):.0%} of it" if worst else ""
    climbed = f"{len(ran)} rung" + "s" * (len(ran) != 1)
    blind = sum(r["blind"] for r in ran)
    nothing = f", of which {blind:,} prove nothing" if blind else ""
    return f"Passed: {climbed}, {sum(r['compared'] for r in ran):,} comparisons{nothing}{closest}{left}"


def describe(row: Mapping[str, Any]) -> str:
    """Which tensor, whose, in which precision, by how much, where."""
    error, budget = number(row["error"]), number(row["budget"])
    if row["name"].startswith("raised "):
        return f"{row['name']}: {row['where']}"
    if row["must_leave"] and not row["ok"]:
        off = f"was to leave its budget of {short(budget)} and is off by {short(error)} only"
    elif not row["proves"] and row["ok"]:
        off = f"proves nothing: it is off by {short(error)}, its budget is {short(budget)}"
    else:
        off = f"is off by {short(error)}, its budget is {short(budget)}"
    return f"{row['name']} ({row['side']}, {row['dtype']}) {off}" + (f"; {row['where']}" if row["where"] else "")


def headroom(row: Mapping[str, Any]) -> float:
    """Error as a share of the budget; infinite where it is not a number."""
    error, budget = number(row["error"]), number(row["budget"])
    if math.isnan(error):
        return math.inf
    if budget == 0:
        return 0.0 if error == 0 else math.inf
    return error / budget


def short(x: float) -> str:
    return "0" if x == 0 else f"{x:.1e}" if math.isfinite(x) else str(x)


def worst_rows(rung: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """For each column of the table, the row that came closest to its budget, or went farthest beyond it."""
    worst: dict[str, Mapping[str, Any]] = {}
    for row in rung["rows"]:
        column = GROUPS.get(row["dtype"], row["dtype"])
        key = (not row["ok"], row["proves"], headroom(row) if not row["must_leave"] else -1.0)
        if column not in worst or key > (not worst[column]["ok"], worst[column]["proves"], headroom(worst[column])):
            worst[column] = row
    return worst


def closest(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each rung, what came closest to its budget or went beyond it, for charts.overview.

    A planted error that has to leave its budget counts only where it did not.
    """
    found = []
    for rung in results["rungs"]:
        rows = [row for row in rung["rows"] if not (row["must_leave"] and row["ok"])]
        row = max(rows, key=lambda row: (not row["ok"], headroom(row)), default=None)
        said, share = {"not run": "not run"}.get(rung["status"], "nothing compared"), None
        if row is not None:
            share, what = headroom(row), f"{row['name']}, {row['dtype']}"
            said = f"{share:.0%}: {what}" if row["ok"] else describe(row)
        found.append({"name": rung["name"], "said": clipped(said), "share": share, "dtype": row["dtype"] if row else "",
                      "ok": rung["status"] != "failed" if row is None else row["ok"]})
    return found


def clipped(text: str, most: int = 70) -> str:
    return text if len(text) <= most else text[:most - 1] + "…"


def lines(results: Mapping[str, Any]) -> Iterable[list[str]]:
    """The table's cells: rung, compared, how many of these prove nothing, one cell a precision, outcome, time."""
    for rung in results["rungs"]:
        worst = worst_rows(rung)
        cells = [f"{short(number(worst[c]['error']))} of {short(number(worst[c]['budget']))}" if c in worst else ""
                 for c in COLUMNS]
        outcome = {"passed": "ok", "failed": "FAILED", "not run": "NOT RUN"}[rung["status"]]
        yield [rung["name"], f"{rung['compared']:,}", f"{rung['blind']:,}", *cells, outcome, f"{rung['seconds']:.0f} s"]


CELLS = ("Each cell is the tensor that came closest to its budget: its largest error and the budget, both as fractions of the "
         "tensor's scale, or of a gradient's length where its factor came closer.")
HEAD = ["rung", "compared", "prove nothing", *(f"{c}: error of budget" for c in COLUMNS), "", "time"]
OUTCOME = HEAD.index("")


def facts(results: Mapping[str, Any]) -> str:
    """Where and with what, in one line."""
    v, s = results["versions"], results["settings"]
    names = [f"{name} {v[name]}" for name in ("sparc_ref", "python", "numpy", "torch", "cupy") if v.get(name)]
    parts = [f"preset {results['preset']}", f"device {results['device']}", v.get("gpu") or v.get("processor") or ""]
    parts += [f"{name.replace('_', ' ')} {s[name]}" for name in ("seed", "threads", "TF32") if name in s]
    return ", ".join([p for p in parts if p] + names) + f"; {results['started']}, {results['seconds']:.0f} s"


def remarks(results: Mapping[str, Any]) -> list[str]:
    """What the table leaves out: rungs that were not run and why, differences that are harmless, how a bound was made."""
    reasons: dict[str, list[str]] = {}
    said = []
    for rung in results["rungs"]:
        if rung["status"] == "not run":
            reasons.setdefault(rung["reason"], []).append(rung["name"])
        said += [f"{rung['name']}: {note}" for note in rung["notes"]]
    said = [f"NOT RUN: {', '.join(names)}: {reason}" for reason, names in reasons.items()] + said
    return said + [f"noticed in {text}" for text in sensitivity.remarks(results["sensitivity"])]


# ------------------------------------------------------------------------------------------------------- in four forms


def terminal(results: Mapping[str, Any], console: Any = None) -> None:
    """Print the table and the verdict."""
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    console.width = max(console.width, 118)               # whole numbers on a wrapped line are better than cut ones
    table = Table(title=f"{results['title']}, {results['preset']}, {results['device']}: error of budget", title_justify="left")
    for i, name in enumerate(HEAD):
        table.add_column(name.removesuffix(": error of budget"), justify="left" if i in (0, OUTCOME) else "right", no_wrap=True)
    for cells in lines(results):
        bad = cells[OUTCOME] != "ok"
        table.add_row(*cells, style="bold red" if cells[OUTCOME] == "FAILED" else "yellow" if bad else None)
    console.print(table)
    console.print(f"  {CELLS}", markup=False, highlight=False, soft_wrap=True)
    if results["sensitivity"]:
        seen = Table(title=sensitivity.TITLE, title_justify="left")
        for i, name in enumerate(sensitivity.HEAD):
            seen.add_column(name, justify="right" if i else "left", no_wrap=True)
        for cells in sensitivity.cells(results["sensitivity"]):
            seen.add_row(*cells)
        console.print(seen)
    for remark in remarks(results):
        console.print(f"  {remark}", markup=False, highlight=False, soft_wrap=True)
    console.print(verdict(results), style="bold green" if results["passed"] else "bold red", markup=False, highlight=False,
                  soft_wrap=True)
    if results["failure"]:
        console.print(results["failure"]["verdict"], markup=False, highlight=False, soft_wrap=True)


def markdown(results: Mapping[str, Any]) -> str:
    """The table as the README shows it, with the verdict above it and the remarks below."""
    out = [f"**{_md(verdict(results))}**", ""]
    if results["failure"]:
        out += [_md(results["failure"]["verdict"]), ""]
    out += ["| " + " | ".join(HEAD) + " |", "| --- |" + " ---: |" * (len(HEAD) - 3) + " --- | ---: |"]
    out += ["| " + " | ".join(_md(cell) for cell in cells) + " |" for cells in lines(results)]
    out += ["", _md(facts(results)), ""]
    if results["sensitivity"]:
        out += [f"{sensitivity.TITLE}.", "", "| " + " | ".join(sensitivity.HEAD) + " |",
                "| --- |" + " ---: |" * (len(sensitivity.HEAD) - 1)]
        out += ["| " + " | ".join(_md(cell) for cell in cells) + " |" for cells in sensitivity.cells(results["sensitivity"])]
        out += [""]
    out += [f"- {_md(remark)}" for remark in remarks(results)]
    return "\n".join(out).rstrip() + "\n"


def junit(results: Mapping[str, Any]) -> str:
    """JUnit XML: a suite per rung, a case per row; a rung that was not run is one skipped case with its reason."""
    suites = []
    for rung in results["rungs"]:
        cases = []
        for row in rung["rows"]:
            name = quoteattr(_xml(f"{row['name']} [{row['side']}, {row['dtype']}]"))
            head = f'  <testcase classname={quoteattr(_xml("parity." + rung["name"]))} name={name} time="0"'
            if row["ok"] and row["proves"]:
                cases.append(head + "/>")
                continue
            if row["ok"]:
                cases += [head + ">", f"    <skipped message={quoteattr(_xml(describe(row)))}/>", "  </testcase>"]
                continue
            failure = results["failure"]
            first = failure and failure["rung"] == rung["name"] and charts.same(failure["row"], row)
            more = failure["verdict"] if first else row["note"]
            cases += [head + ">", f"    <failure message={quoteattr(_xml(describe(row)))}>{escape(_xml(more))}</failure>",
                      "  </testcase>"]
        skipped = rung["status"] == "not run"
        if skipped:
            cases += [f'  <testcase classname={quoteattr(_xml("parity." + rung["name"]))} name="not run" time="0">',
                      f"    <skipped message={quoteattr(_xml(rung['reason']))}/>", "  </testcase>"]
        failed = sum(not row["ok"] for row in rung["rows"])
        skips = skipped + sum(row["ok"] and not row["proves"] for row in rung["rows"])
        suites.append(
            f'<testsuite name={quoteattr(_xml(rung["name"]))} tests="{len(rung["rows"]) + skipped}" failures="{failed}" '
            f'errors="0" skipped="{skips}" time="{rung["seconds"]:.3f}" timestamp={quoteattr(_xml(results["started"]))}>'
        )
        named = {"preset": results["preset"], "device": results["device"]} | results["settings"] | results["versions"]
        suites.append("  <properties>")
        suites += [f"    <property name={quoteattr(_xml(k))} value={quoteattr(_xml(v))}/>" for k, v in named.items()]
        suites += ["  </properties>", *cases, "</testsuite>"]
    if all(rung["status"] == "not run" for rung in results["rungs"]):  # a reader that counts failures must see one
        suites += ['<testsuite name="ladder" tests="1" failures="1" errors="0" skipped="0" time="0">',
                   '  <testcase classname="parity.ladder" name="something was run" time="0">',
                   f"    <failure message={quoteattr(_xml(verdict(results)))}/>", "  </testcase>", "</testsuite>"]
    return "\n".join(['<?xml version="1.0" encoding="UTF-8"?>', "<testsuites>", *suites, "</testsuites>"]) + "\n"


STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #111; --soft: #333; --axis: #555; --grid: #c2c2c2; --faint: #e4e4e4;
        --stripe: #f2f2f2; --alarm: #fdecee; --failed: #b00020; --float64: #0a58a6; --float32: #00755a; --bits16: #a34500;
        --broad: #8fbbe8; --good: #19702f; --good-paper: #eaf6ed; --part: #8a6100; --part-paper: #fdf5e2; --link: #0b4f8a; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181b; --ink: #ececec; --soft: #c4c4c4; --axis: #b4b4b4; --grid: #565b61; --faint: #33373c;
          --stripe: #202328; --alarm: #4a1720; --failed: #ff8c9a; --float64: #7db8f5; --float32: #4fc9a5; --bits16: #f0a05c;
          --broad: #35618f; --good: #56b36f; --good-paper: #16301d; --part: #d9a93c; --part-paper: #362b10; --link: #8cc1f7; }
}
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, "DejaVu Sans", Arial, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
       max-width: 74rem; padding: 1rem 1.2rem 4rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; margin: .6rem 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .3rem; border-bottom: 1px solid var(--axis); padding-bottom: .2rem; }
p { max-width: 56rem; margin: .4rem 0; } li { max-width: 56rem; }
.verdict { border-left: .5rem solid var(--good); background: var(--good-paper); padding: .6rem .9rem; }
.verdict.failed { border-color: var(--failed); background: var(--alarm); }
.verdict strong { font-size: 1.1rem; }
.verdict.partly { border-color: var(--part); background: var(--part-paper); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .8rem 0; }
th, td { text-align: right; padding: .2rem .8rem .2rem 0; white-space: nowrap; vertical-align: baseline; }
th:first-child, td:first-child, .left { text-align: left; }
thead th { border-bottom: 2px solid var(--ink); } tbody td { border-bottom: 1px solid var(--grid); }
td.bad { color: var(--failed); font-weight: bold; } tr.skipped td { color: var(--part); }
.small td, .small th { font-size: .86rem; white-space: normal; text-align: left; }
.scroll { overflow-x: auto; } figure { margin: .4rem 0 0; }
svg { display: block; max-width: 100%; height: auto; } figcaption { font-size: .86rem; color: var(--soft); max-width: 56rem; }
a { color: var(--link); }
@media print { figure, tr { break-inside: avoid; } }
"""


def page(results: Mapping[str, Any]) -> str:
    """The whole report as one HTML file: no script, nothing loaded, every text escaped, every picture inline SVG."""
    e = html.escape
    state = "failed" if not results["passed"] else "partly" if any(r["status"] == "not run" for r in results["rungs"]) else ""
    red = ' class="bad"'
    head = f'<div class="verdict {state}"><strong>{e(verdict(results))}</strong>'
    if results["failure"]:
        head += f"<p>{e(results['failure']['verdict'])}</p>"
    head += "</div>"
    rows = ""
    for rung, cells in zip(results["rungs"], lines(results)):
        worst = worst_rows(rung)
        bad = {3 + i for i, c in enumerate(COLUMNS) if c in worst and not worst[c]["ok"]}
        bad |= {OUTCOME} if rung["status"] == "failed" else set()
        first = f'<td><a href="#{e(_anchor(rung))}">{e(cells[0])}</a></td>'
        others = "".join(f"<td{red if i in bad else ''}>{e(cell)}</td>" for i, cell in enumerate(cells) if i)
        rows += f"<tr{' class=skipped' if rung['status'] == 'not run' else ''}>{first}{others}</tr>"
    table = (f'<div class="scroll"><table><thead><tr>{"".join(f"<th>{e(c)}</th>" for c in HEAD)}</tr></thead>'
             f"<tbody>{rows}</tbody></table></div>")
    seen = ""
    if results["sensitivity"]:
        seen = "".join("<tr>" + "".join(f"<td>{e(cell)}</td>" for cell in cells) + "</tr>"
                       for cells in sensitivity.cells(results["sensitivity"]))
        seen = (f'<p>{e(sensitivity.TITLE)}.</p><div class="scroll"><table><thead><tr>'
                f'{"".join(f"<th>{e(c)}</th>" for c in sensitivity.HEAD)}</tr></thead><tbody>{seen}</tbody></table></div>')
    said = "".join(f"<li>{e(remark)}</li>" for remark in remarks(results))
    failed = results["failure"]["row"] if results["failure"] else None
    sections = []
    for rung in sorted(results["rungs"], key=lambda rung: rung["status"] != "failed"):  # what failed comes first
        body = f"<p>{e(rung['what'])}</p>"
        if rung["status"] == "not run":
            body += f"<p><strong>Not run.</strong> {e(rung['reason'])}</p>"
        if rung["series"]:
            body += f"<figure>{charts.curves(rung['series'])}</figure>"
        if rung["rows"]:
            body += f'<figure class="scroll">{charts.errors(rung["rows"], failed)}</figure>'
        sections.append(f'<section id="{e(_anchor(rung))}"><h2>{e(rung["name"])}</h2>{body}</section>')
    effective = {"command": results["command"], "started": results["started"]} | dict(results["settings"])
    where = "".join(f"<tr><td>{e(str(k))}</td><td>{e(str(v))}</td></tr>" for k, v in effective.items())
    versions = "".join(f"<tr><td>{e(str(k))}</td><td>{e(str(v))}</td></tr>" for k, v in results["versions"].items() if v)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{e(results["title"])}: {"passed" if results["passed"] else "FAILED"}</title><style>{STYLE}</style></head><body>
<h1>{e(results["title"])}</h1>
{head}
<p>{e(facts(results))}</p>
<figure class="scroll">{charts.overview(closest(results))}</figure>
{table}
<p>{e(CELLS)} {charts.LEGEND}</p>
{seen}
{f"<ul>{said}</ul>" if said else ""}
{"".join(sections)}
<section id="settings"><h2>Settings and versions</h2>
<table class="small"><tbody>{where}{versions}</tbody></table></section>
</body></html>
"""


def _anchor(rung):
    return "rung-" + "".join(c if c.isalnum() else "-" for c in rung["name"])


def _md(text):
    return str(text).replace("|", "\\|").replace("\n", " ")


def _xml(text):
    """XML 1.0 has no place for control characters."""
    return "".join(c for c in str(text) if c in "\t\n\r" or (c >= " " and not "\ud800" <= c <= "\udfff" and c < "\ufffe"))
