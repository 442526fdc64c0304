"""The verdict as a page in one file, to attach to a bug report: what is wrong, how to mend it, each stage theirs beside ours.

write_page(report, path): `report` is Report.to_dict(), which check.schema.json describes; a key that is missing leaves its
section out.  Names and exceptions come from strangers: every text is escaped, nothing is loaded, there is no script.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parity.checker.diagnosis.sizes import ranges
from parity.checker.page.figures import matrix, stages, state
from parity.checker.page.text import as_list, capital, counted, number, off_by, safe

VERDICTS = {
    "eq6": ("good", "Equals eq. 6"),
    "listing1": ("good", "Equals Listing 1"),
    "conditional": ("partly", "Equals {base} only under conditions"),
    "explained": ("bad", "Differs, explained"),
    "unexplained": ("bad", "Differs, unexplained"),
    "cannot_run": ("bad", "Cannot run"),
}
STYLE = (Path(__file__).parent / "style.css").read_text("utf-8")


def write_page(report: Mapping[str, Any], path: str | os.PathLike) -> Path:
    """Write the page and return its path; an old one is replaced at once."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(page(report), encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def page(report: Mapping[str, Any]) -> str:
    """The whole page as text."""
    kind, title = VERDICTS.get(str(report.get("verdict")), ("bad", str(report.get("verdict", "No verdict"))))
    title = title.format(base=report.get("base") or "eq. 6")
    name = report.get("target") or "an implementation"
    parts = [
        opening(report, kind, title, name), error(report), changes(report), conditions(report), behaviour(report),
        harmless(report), edges(report), stages(report), probes(report), convention(report), ending(report),
    ]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{safe(title)}: {safe(name)}</title><style>{STYLE}</style></head><body>
{"".join(parts)}
</body></html>
"""


def opening(report, kind, title, name):
    badge = f'<span class="badge">{safe(report["summary"])}</span>' if report.get("summary") else ""
    sentence = f'<p class="says">{safe(report["headline"])}</p>' if report.get("headline") else ""
    each = report.get("losses") or {}
    parts = ""
    if len(each) > 1:
        words = (f"{safe(loss)} loss: {safe(said(loss, str(x)))}" for loss, x in each.items())
        parts = f'<p class="muted">{"; ".join(words)}</p>'
    return (
        f'<h1>SPARC\'s loss, checked: <code>{safe(name)}</code></h1>\n<div class="verdict {kind}">'
        f'<span class="what">{safe(title)}</span>{sentence}{parts}{badge}</div>'
    )


def said(loss, verdict):
    base = "eq. 1" if loss == "global" else "eq. 6"
    return f"equals {base}" if verdict == "eq6" else VERDICTS.get(verdict, ("", verdict))[1].format(base=base).lower()


def error(report):
    said = report.get("error")
    if not said:
        return ""
    if isinstance(said, Mapping):
        known = not said.get("call") or str(said["call"]) in str(report.get("headline"))
        where = "" if known else f"<p>Raised by <code>{safe(said['call'])}</code></p>"
        text = ": ".join(str(said[key]) for key in ("type", "message") if said.get(key))
        text += "".join(f"\n    {line}" for line in as_list(said.get("lines")))
    else:
        where, text = "", said
    return f'<section><h2>What it raised</h2>{where}<pre class="wrap">{safe(text)}</pre></section>'


def changes(report):
    found = [x for x in as_list(report.get("deviations")) if isinstance(x, Mapping)]
    right = report.get("verdict") in ("eq6", "listing1", "cannot_run")
    out = []
    if report.get("verdict") == "unexplained":
        where = ""
        if report.get("stage"):
            lead = "The first stage that goes wrong" + ("" if report.get("stage_seen", True) else ", as far as it was seen,")
            where = f" {lead} is <b>{safe(' or '.join(map(str, [report['stage'], *as_list(report.get('stage_open'))])))}</b>."
        which = (
            "What was found below does not give all of these losses and gradients; there is something else"
            if found else "None of the known deviations that were tried, alone or together, gives these losses and gradients"
        )
        out.append(
            f"<section><h2>Where to look</h2><p>{which}, so no cause is named here.{where} {shown(report)}</p></section>"
        )
    if found and not right:
        title = "What to change" if not out else "Found on the way"
        cards = "".join(card(x, report) for x in found)
        out.append(f"<section><h2>{title}</h2>{cards}{equals(report)}</section>")
    elif found:
        out.append(f"<section><h2>The reading of the paper</h2>{''.join(card(x, report) for x in found)}</section>")
    return "".join(out)


def shown(report):
    """What shows the difference."""
    stages_ = [x for x in as_list(report.get("stages")) if isinstance(x, Mapping) and matrix(x.get("ours")) is not None]
    if any(state(x) == "off" for x in stages_):
        return "The figures and the batches below show the difference."
    return "Of the arrays that were seen none shows it; how far each batch is off stands below."


def follows(report, cause=None):
    """Findings that follow from a deviation: under it, or, where it has no card, by themselves."""
    shown = {x.get("id") for x in as_list(report.get("deviations")) if isinstance(x, Mapping)}
    found = [x for x in as_list(report.get("behaviour")) if isinstance(x, Mapping) and x.get("explained_by")]
    firsts = [(next((i for i in as_list(x["explained_by"]) if i in shown), None), x) for x in found]
    return [x for first, x in firsts if first == cause]


def card(x, report):
    """One deviation: words, equation, fix, effect, what it does to training, what follows from it."""
    where = ", ".join(safe(x[key]) for key in ("equation", "id") if x.get(key))
    out = [f'<div class="card"><h3>{safe(capital(x.get("title") or x.get("id", "")))}</h3><p class="where">{where}</p>']
    if x.get("words") and str(x["words"]).casefold() != str(x.get("title")).casefold():
        out.append(f"<p>{safe(capital(x['words']))}.</p>")
    if x.get("fix"):
        out.append(f"<pre>{safe(x['fix'])}</pre>")
    effect = x.get("effect") if isinstance(x.get("effect"), Mapping) else {}
    kinds = [what for what in ("loss", "gradient") if number(effect.get(what)) is not None]
    moved = [f"the {what} by <b>{off_by(effect[what])}</b>" for what in kinds]
    if moved:
        batch = f" (batch {safe(str(effect['probe']).replace('_', ' '))})" if effect.get("probe") else ""
        out.append(f'<p class="effect">Alone it moves {" and ".join(moved)}{batch}.</p>')
    if x.get("training"):
        out.append(f"<p><b>In training, as expected and not measured here.</b> {safe(x['training'])}</p>")
    texts = [str(y.get("evidence") or y.get("words") or "") for y in follows(report, x.get("id"))]
    if texts:
        items = "".join(f"<li>{safe(capital(text))}.</li>" for text in texts)
        out.append(f"<p><b>What follows from it.</b></p><ul>{items}</ul>")
    return "".join([*out, "</div>"])


def equals(report):
    """Other sets that no probe tells apart."""
    others = [", ".join(map(str, as_list(some))) for some in as_list(report.get("equals"))]
    if not others:
        return ""
    return f'<p class="muted">Not told apart from it by any value or gradient: {safe("; or ".join(others))}.</p>'


def conditions(report):
    held = as_list(report.get("conditions"))
    if not held:
        return ""
    items = "".join(f"<li>{safe(x)}</li>" for x in held)
    which = "all of these conditions" if len(held) > 1 else "this condition"
    graded = any(x.get("gradient") is not None for x in as_list(report.get("off")) if isinstance(x, Mapping))
    right = "Loss and gradient are" if graded else "The loss is"
    lead = f"{right} right on every batch that was tried with {which}:"
    return f"<section><h2>Where it agrees</h2><p>{lead}</p><ul>{items}</ul></section>"


def behaviour(report):
    found = [x for x in as_list(report.get("behaviour")) if isinstance(x, Mapping)]
    own, rest = [x for x in found if not x.get("explained_by")], follows(report)
    out = ""
    if own:
        out += f"<section><h2>What ordinary values do not show</h2>{''.join(map(finding, own))}</section>"
    if rest:
        texts = [(x.get("evidence") or x.get("words") or "", ", ".join(map(str, as_list(x["explained_by"])))) for x in rest]
        items = "".join(f"<li>{safe(capital(text))} ({safe(cause)})</li>" for text, cause in texts)
        out += f"<section><h2>What follows from it</h2><ul>{items}</ul></section>"
    return out


def finding(x):
    """A finding of its own, with its fix."""
    seen = f"<p>{safe(capital(x['evidence']))}.</p>" if x.get("evidence") else ""
    fix = f"<pre>{safe(x['fix'])}</pre>" if x.get("fix") else ""
    training = ""
    if x.get("training"):
        training = f"<p><b>In training, as expected and not measured here.</b> {safe(x['training'])}</p>"
    title = safe(capital(x.get("title") or x.get("id", "")))
    return f'<div class="card"><h3>{title}</h3><p class="where">{safe(x.get("id", ""))}</p>{seen}{fix}{training}</div>'


def harmless(report):
    words = [x.get("words") or x.get("id", "") for x in as_list(report.get("harmless")) if isinstance(x, Mapping)]
    if not words:
        return ""
    items = "".join(f"<li>{safe(capital(x))}</li>" for x in words)
    return f"<section><h2>Different and harmless</h2><ul>{items}</ul></section>"


def edges(report):
    words = [x.get("words") or x.get("id", "") for x in as_list(report.get("edges")) if isinstance(x, Mapping)]
    if not words:
        return ""
    items = "".join(f"<li>{safe(capital(x))}</li>" for x in words)
    lead = "<p>It counts as a difference with <code>--edges strict</code> alone.</p>"
    return f"<section><h2>Only where numbers are exactly equal</h2>{lead}<ul>{items}</ul></section>"


def convention(report):
    read = report.get("convention")
    if not isinstance(read, Mapping):
        return ""
    body = "".join(
        f"<tr><td><code>{safe(x.get('what', ''))}</code></td><td>{safe(x.get('value', ''))}</td>"
        f'<td>{safe(x.get("sure", ""))}</td><td class="muted">{safe(x.get("why") or "")}</td></tr>'
        for x in as_list(read.get("items")) if isinstance(x, Mapping)
    )
    call = f"<pre>{safe(read['call'])}</pre>" if read.get("call") else ""
    keyword = f" <code>--call {safe(read['written'])}</code>" if read.get("written") else ""
    return (
        f'<section><h2>How it was called</h2><p class="muted">Inferred by trying. Where a line is wrong, so is the '
        f'verdict: say it with{keyword or " the right keyword"} and check again.</p>{call}<div class="scroll"><table><thead>'
        "<tr><th>what</th><th>read as</th><th>sure</th><th>because</th></tr></thead>"
        f"<tbody>{body}</tbody></table></div></section>"
    )


def probes(report):
    rows = [x for x in as_list(report.get("off")) if isinstance(x, Mapping)]
    if not rows:
        return ""
    slack = {key: max(1e-6, number((report.get("rounding") or {}).get(key)) or 0.0) for key in ("loss", "gradient")}
    pairs = [(x, tuple(cell(x, key, rows, slack[key]) for key in slack)) for x in rows]
    shown = "".join(
        f"<tr><td>{safe(str(x.get('probe', '')).replace('_', ' '))}</td>"
        + "".join(f'<td class="n{" off" if wrong else ""}">{text}</td>' for text, wrong in cells)
        + f'<td class="muted">{safe(x.get("shows") or "")}</td></tr>' for x, cells in pairs
    )
    right = sum(not any(wrong for _, wrong in cells) for _, cells in pairs)
    reached = number(report.get("reproduced_to"))
    known = reached is not None and report.get("deviations")
    model = f" The explanation above gives your numbers to {reached:.0e}." if known else ""
    return (
        f"<section><h2>Batch by batch</h2><p>Equal on {right} of {len(rows)} batches.{model}</p>"
        '<div class="scroll"><table><thead><tr><th>batch</th><th class="n">loss off by</th><th class="n">gradient off by</th>'
        f'<th>what it shows</th></tr></thead><tbody>{shown}</tbody></table></div><p class="muted">Against '
        f"{safe(report.get('base') or 'eq. 6')} in float64. A gradient is off by its largest error over its largest entry; a "
        "dash: there is none to compare.</p></section>"
    )


def cell(x, key, rows, slack=1e-6):
    """What is shown, and whether it is wrong.  A loss that is no number in JSON was not finite.

    A norm of zeros is named as the cause where batches without zeros are off by far less.
    """
    value = number(x.get(key))
    if value is None:
        return ("not finite", True) if key == "loss" else ("–", False)
    others = [number(y.get(key)) for y in rows if "zero" not in str(y.get("probe"))]
    zeros = "zero" in str(x.get("probe")) and all(y is None or not y >= value / 10 for y in others)
    cause = ", of zeros' norm" if value >= 10 and zeros else ""
    return off_by(value) + cause, not value <= slack


def ending(report):
    """Notes, versions, time."""
    notes = "".join(f"<li>{safe(capital(x))}</li>" for x in as_list(report.get("notes")))
    notes = f"<section><h2>Also</h2><ul>{notes}</ul></section>" if notes else ""
    tried = report.get("tried")
    if isinstance(tried, Mapping) and tried:
        notes += f'<p class="muted">Tried: {safe(ranges(tried))}.</p>'
    known = report.get("versions") or {}
    items = [f"{safe(k)} {safe(v)}" for k, v in known.items() if v] if isinstance(known, Mapping) else [safe(known)]
    if number(report.get("seconds")) is not None:
        where = {"process": "a process of its own", "fork": "a fork", "here": "this process", "folder": "another program"}
        calls = f"{safe(report['calls'])} call{'' if report['calls'] == 1 else 's'} in " if report.get("calls") else ""
        items.append(f"{calls}{where.get(str(report.get('runs_in')), 'a process')}, {number(report['seconds']):.1f} s")
    counts = report.get("sentences")
    if isinstance(counts, Mapping) and any(counts.values()):
        items.append(safe(counted(counts)))
    return notes + (f'<footer class="muted">{", ".join(items)}</footer>' if items else "")
