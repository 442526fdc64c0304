"""The report of a demo: one table for the terminal and for a self-contained report.html, and the figures around it.

How to call it:

    from sparc_ref.run.examples import explain_examples
    from sparc_ref.show.report import DemoReport, Run, demo_report, print_results

    sparc = Run(
        name="SPARC",
        config={**asdict(model_config), **asdict(train_config)},    # flat, anything that str() can print
        metrics=rows,                                               # dicts, the lines of metrics.jsonl: "step" and any of
                                                                    # the keys of plots.PANELS (loss_global, pointing, ...)
        final=evaluate(params, model_config, test, tokenizer) | {"seconds": 61.2},          # flat dict of numbers
        spread={"pointing": (0.61, 0.07, 10)},                      # mean, sd, number of seeds; {} where not known
        examples=explain_examples(params, model_config, test, tokenizer, [0, 3, 5, 8]),     # the same for every run
        files={"metrics": "sparc/metrics.jsonl", "checkpoint": "sparc/checkpoint"},
    )
    report = DemoReport(
        title="SPARC on drawn scenes", runs=(sparc, baseline), trained_on=train.describe(), evaluated_on=test.describe(),
        environment={"python": "3.12.1", "numpy": "2.3", "threads": 2}, reproduce=("sparc-ref demo --seed 0",),
        notes=("Both models started from the same weights and saw the same batches in the same order.",),
    )
    print_results(report)                                           # the table, in the terminal
    path = demo_report("runs/demo", report)                         # runs/demo/report.html

Everything may be missing: a number that no run has is left out, one that some run lacks reads "not measured", sections
without content are not written. Nothing is decided here: the sentences are computed from the numbers.
"""

import base64
import html
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparc_ref.run.files import write_whole
from sparc_ref.show import maps, plots
from sparc_ref.show.results import (
    DemoReport,
    Number,
    Run,
    best_of,
    findings,
    grounding,
    print_results,
    printed,
    printed_spread,
    results_table,
    spread,
    table,
    visible,
    what_was_run,
)

__all__ = ["DemoReport", "Number", "Run", "demo_report", "page", "print_results", "results_table"]

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 17px/1.5 system-ui, "DejaVu Sans", Arial, sans-serif; color: #111; background: #fff; margin: 0 auto;
       max-width: 68rem; padding: 1rem 1.2rem 4rem; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .8rem 0 .4rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .5rem; border-bottom: 1px solid #999; padding-bottom: .2rem; }
p, li { max-width: 46rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .7rem; vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { border-bottom: 2px solid #111; vertical-align: bottom; }
tbody th { text-align: left; padding-top: .7rem; border-bottom: 1px solid #bbb; }
tbody td { border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
tbody td:first-child { white-space: normal; min-width: 9rem; }
td.chance, td small { color: #555; }
td small { display: block; font-size: .78rem; }
td.missing { color: #555; font-style: italic; }
.settings td, .settings thead th { text-align: left; white-space: normal; font-size: .85rem; vertical-align: baseline;
                                   padding: .12rem .7rem .12rem 0; }
.settings tr.differs td { font-weight: bold; }
figure { margin: 1rem 0 1.6rem; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .88rem; color: #444; max-width: 46rem; margin-top: .3rem; }
pre { background: #f3f3f3; padding: .6rem .8rem; overflow-x: auto; font-size: .88rem; }
@media (max-width: 40rem) {
  body { font-size: 16px; padding: .5rem .8rem 3rem; }
  th, td { padding: .22rem .3rem; font-size: .84rem; }
  tbody td { white-space: normal; } tbody td:first-child { min-width: 7rem; }
  figure .wide { overflow-x: auto; } figure .wide img { max-width: none; width: 46rem; }
}
@media print {
  @page { size: A4; margin: 14mm; }
  body { font-size: 10pt; line-height: 1.4; padding: 0; max-width: none; }
  h2 { break-after: avoid; } figure, tr, pre, section { break-inside: avoid; }
  th, td { padding-top: .12rem; padding-bottom: .12rem; } .settings td { font-size: 8pt; line-height: 1.25; }
  figure img { max-height: 215mm; } .scroll, figure .wide { overflow: visible; }
  pre { white-space: pre-wrap; border: 1px solid #999; background: #fff; }
}
"""


def demo_report(run_dir: str | os.PathLike, report: DemoReport, name: str = "report.html") -> Path:
    """Write run_dir/report.html, one file that needs nothing else, and return its path. An old one is replaced at once."""
    path = Path(run_dir) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page(report))
    return path


def page(report: DemoReport) -> str:
    """The report as HTML. Every text in it is escaped, every picture is inside; there is no script."""
    if not report.runs:
        raise ValueError("runs: expected at least one, got none")
    sections = [results(report), scenes(report), learning(report), segmentation(report), settings(report),
                environment(report), reproduce(report)]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{safe(report.title)}</title><style>{STYLE}</style></head><body>
<h1>{safe(report.title)}</h1>
<p>{safe(what_was_run(report))}{"".join(f" {safe(note)}" for note in report.notes)}</p>
{"".join(sections)}
</body></html>
"""


def safe(text: Any) -> str:
    """Text for HTML, quotes included; control characters made visible."""
    return html.escape(visible(text), quote=True)


def together(text: str) -> str:
    """safe, and no line break between a number and its unit or spread."""
    return safe(text).replace(" %", "&nbsp;%").replace(" ± ", "&nbsp;±&nbsp;")


def results(report):
    """The table, first of all, and the sentences."""
    rows, last = [], None
    for number, values, base in table(report):
        if number.group != last:
            rows.append(f'<tr><th colspan="{len(report.runs) + 2}" scope="rowgroup">{safe(number.group)}</th></tr>')
            last = number.group
        best, cells = best_of(report, number, values), []
        for i, (run, x) in enumerate(zip(report.runs, values)):
            known = spread(run, number)
            text = f"<b>{together(printed(number, x))}</b>" if i in best else together(printed(number, x))
            small = f"<small>{together(printed_spread(number, known))}</small>" if known else ""
            cells.append(f"<td{' class=missing' if x is None else ''}>{text}{small}</td>")
        cells.append(f'<td class="chance">{"" if base is None else together(printed(number, base))}</td>')
        rows.append(f"<tr><td>{safe(number.label)}</td>{''.join(cells)}</tr>")
    if not rows:
        return "<h2>Results</h2><p>No number was measured.</p>"
    head = "".join(f'<th scope="col">{safe(run.name)}</th>' for run in report.runs)
    legend = ["Chance: what a model scores that knows nothing."]
    if any(spread(run, n) for run in report.runs for n, _, _ in table(report)):
        legend.insert(0, "Small print: mean ± standard deviation over seeds, the number of seeds in brackets"
                         f"{f', {report.origin}' if report.origin else ''}.")
    if len(report.runs) > 1:
        legend.insert(0, "Bold: the better of the runs, unless the difference is within the spread over seeds.")
    sentences = "".join(f"<li>{together(text)}</li>" for text in findings(report))
    return f"""<h2>Results</h2><div class="scroll"><table><thead><tr><th></th>{head}<th scope="col">chance</th></tr></thead>
<tbody>{"".join(rows)}</tbody></table></div>
<ul>{sentences}</ul><p><small>{safe(" ".join(legend))}</small></p>"""


def scenes(report):
    """What each word looks at: the same examples through each run, together where the runs' maps can stand side by side."""
    parts = []
    for i in range(report.scenes):
        groups: dict[tuple, dict] = {}
        for run in report.runs:
            if i < len(run.examples):
                e = run.examples[i]
                groups.setdefault((e.image.tobytes(), e.words, e.grid), {})[run.name] = e
        for group in groups.values():
            e = next(iter(group.values()))
            measured = e.masks is not None and np.any(np.asarray(e.objects) >= 0)
            figure = maps.compare(group, ("similarity", "weights"), title=None if measured else f"“{e.caption}”")
            below = f"“{e.caption}”" + (f": {report.shown[i]}" if i < len(report.shown) else "")
            parts.append(picture(figure, f"{', '.join(group)}, {e.caption}", below, wide=figure.get_figwidth() > 8))
    if not parts:
        return ""
    said = "".join(f"<p><b>{safe(run.name)}.</b> {together(text)}</p>" for run in report.runs if (text := grounding(run.final)))
    return f"""<h2>What each word looks at</h2>
<p>For each word of a caption: its similarity to every patch (inner product, signed), and its weights: the same stretched to
0..1 (eq. 2), what is below 1/P removed (eq. 3), the rest divided by its sum (eq. 4). Eq. 5 averages the patches with these
weights.</p>
{said}{"".join(parts)}"""


def learning(report):
    """Curves of all runs."""
    series = {run.name: run.metrics for run in report.runs}
    if not any(len(plots.curve(rows, panel.key)[0]) for rows in series.values() for panel in plots.PANELS):
        return ""
    measured = ", ".join(sorted({str(r["split"]) for rows in series.values() for r in rows if r.get("split")})[:3])
    return "<h2>Learning curves</h2>" + picture(
        plots.curves(series), "Learning curves: " + ", ".join(series),
        "Losses are those of training batches; the other curves are measured during training, on the first of the validation "
        f"sets{f' ({measured})' if measured else ''}. "
        "Dotted: chance, or zero for the grounding gap.", wide=False)


def segmentation(report):
    """Predicted against true masks, for the examples that all runs have."""
    first = report.runs[0].examples
    shown = [i for i, e in enumerate(first) if e.truth is not None and e.classes
             and all(i < len(run.examples) and run.examples[i].predicted is not None for run in report.runs)][:6]
    if not shown:
        return ""
    figure = plots.masks([first[i].image for i in shown], [first[i].truth for i in shown],
                         {run.name: [at_size(run.examples[i].predicted, first[i].truth.shape) for i in shown]
                          for run in report.runs},
                         first[shown[0]].classes)
    return "<h2>Predicted and true masks</h2>" + picture(
        figure, "Predicted and true masks",
        "Every patch takes the class whose text embedding is nearest; there is no background class. Pale: pixels outside the "
        "true objects, which count as false positives; outlines: the true objects.", wide=True)


def at_size(labels, shape):
    """Labels (H,W) of a model with pictures of another size, each pixel the nearest one's."""
    rows, columns = ((np.arange(n) * 2 + 1) * old // (2 * n) for n, old in zip(shape, labels.shape))
    return labels[rows][:, columns]


def settings(report):
    """Configuration of each run side by side; what differs is bold and marked."""
    columns = {run.name: run.config for run in report.runs}
    return side_by_side("Configuration", columns) if any(columns.values()) else ""


def environment(report):
    """Data, machine and files."""
    data = {"training": report.trained_on, "evaluation": report.evaluated_on}
    out = side_by_side("Data", {k: x for k, x in data.items() if x}) if any(data.values()) else ""
    for title, pairs in (("Environment", report.environment),
                         ("Files", {f"{run.name}: {k}": v for run in report.runs for k, v in run.files.items()})):
        out += f"<section><h2>{title}</h2>{pair_table(pairs)}</section>" if pairs else ""
    return out


def side_by_side(title, columns: Mapping[str, Mapping[str, Any]]) -> str:
    """A table with a row per key; rows whose values differ are bold and marked."""
    rows = []
    for key in dict.fromkeys(key for column in columns.values() for key in column):
        values = [str(column[key]) if key in column else "–" for column in columns.values()]
        differs = len(set(values)) > 1
        cells = "".join(f"<td>{safe(v)}</td>" for v in values)
        rows.append(f"<tr{' class=differs' if differs else ''}><td>{safe(key)}{' ≠' if differs else ''}</td>{cells}</tr>")
    head = "".join(f'<th scope="col">{safe(name)}</th>' for name in columns)
    note = "<p>Bold, with ≠: what differs.</p>" if len(columns) > 1 else ""
    return f"""<section><h2>{safe(title)}</h2>{note}
<div class="scroll"><table class="settings"><thead><tr><th></th>{head}</tr></thead>
<tbody>{"".join(rows)}</tbody></table></div></section>"""


def pair_table(pairs: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><td>{safe(k)}</td><td>{safe(v)}</td></tr>" for k, v in pairs.items())
    return f'<div class="scroll"><table class="settings"><tbody>{rows}</tbody></table></div>'


def reproduce(report):
    if not report.reproduce:
        return ""
    return f"<h2>How to reproduce</h2><pre>{chr(10).join(map(safe, report.reproduce))}</pre>"


def picture(figure, alt, caption, *, wide):
    """A figure as an image inside the page; wide ones keep their size on a phone and scroll sideways."""
    data = base64.b64encode(plots.png(figure)).decode("ascii")
    below = f"<figcaption>{safe(caption)}</figcaption>" if caption else ""
    return (f'<figure><div{" class=wide" if wide else ""}><img alt="{safe(alt)}" src="data:image/png;base64,{data}"></div>'
            f"{below}</figure>")
