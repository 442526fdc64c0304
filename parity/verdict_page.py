"""The verdict as a page in one file, to attach to a bug report: what is wrong, how to mend it, each stage theirs beside ours.

write_page(report, path), `report` being Report.to_json()'s dict; a key that is missing leaves its section out.  Names,
docstrings and exceptions come from strangers: every text is escaped, nothing is loaded, there is no script.
"""

import html
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from parity import stage_figures

VERDICTS = {
    "eq6": ("good", "Equals eq. 6"),
    "listing1": ("good", "Equals Listing 1"),
    "conditional": ("partly", "Equals it only under conditions"),
    "explained": ("bad", "Differs, explained"),
    "unexplained": ("bad", "Differs, unexplained"),
    "cannot_run": ("bad", "Cannot run"),
}
STAGES = {                                                # name -> title, what its columns are
    "similarity": ("Similarity", "patches", "s = t v'"),
    "minmax": ("Min-max", "patches", "eq. 2: each row stretched to [0, 1]"),
    "sparse": ("Threshold", "patches", "eq. 3: what is below sigma is 0"),
    "weights": ("Weights", "patches", "eq. 4: each row sums to 1"),
    "grouped": ("Grouped patches", "dimensions", "eq. 5: c = a v"),
    "logits_vt": ("Logits", "tokens", "phi(c, t) / tau"),
    "logits_tv": ("Logits, other direction", "tokens", "phi(t, c) / tau"),
    "logits": ("Logits", "tokens", "phi(c, t) / tau"),
    "loss_vt": ("Loss of groups", "", "cross-entropy of each group picking its token"),
    "loss_tv": ("Loss of tokens", "", "cross-entropy of each token picking its group"),
}
FIRST = {                                                 # a deviation's stage -> where its first trace shows in the figures
    "similarity": ("similarity",), "minmax": ("minmax",), "threshold": ("sparse", "weights"), "weights": ("weights",),
    "grouping": ("grouped",), "norm": ("logits_vt", "logits"), "logits": ("logits_vt", "logits"), "loss": ("loss_vt",),
}
POSITIVE = ("minmax", "sparse", "weights", "loss_vt", "loss_tv")
STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, "DejaVu Sans", Arial, sans-serif; color: #111; background: #fff; margin: 0 auto;
       max-width: 66rem; padding: 1rem 1.2rem 4rem; overflow-wrap: break-word; }
h1 { font-size: 1.05rem; font-weight: normal; color: #333; margin: .4rem 0 .5rem; } h1 code { font-size: 1.05rem; color: #111; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .5rem; border-bottom: 1px solid #999; padding-bottom: .2rem; }
h3 { font-size: 1.05rem; margin: 0 0 .3rem; }
p { max-width: 54rem; margin: .4rem 0; } li { max-width: 54rem; margin: .15rem 0; }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: .88rem; }
pre { background: #f4f4f2; border: 1px solid #ddd; padding: .6rem .8rem; overflow-x: auto; margin: .5rem 0; line-height: 1.45; }
.verdict { border-left: .5rem solid #b00020; background: #fdecee; padding: .7rem 1rem; }
.verdict.good { border-color: #19702f; background: #eaf6ed; } .verdict.partly { border-color: #8a6100; background: #fdf5e2; }
.verdict .what { display: inline-block; font-weight: bold; color: #8c0019; }
.verdict.good .what { color: #135423; } .verdict.partly .what { color: #6b4b00; }
.verdict p.says { font-size: 1.2rem; line-height: 1.4; margin: .2rem 0; }
.badge { display: block; width: fit-content; max-width: 100%; margin-top: .5rem; padding: .1rem .55rem; border: 1px solid #777;
         border-radius: .3rem; background: #fff; font: .82rem/1.6 ui-monospace, "DejaVu Sans Mono", Consolas, monospace; }
.card { border: 1px solid #bbb; border-radius: .3rem; padding: .8rem 1rem; margin: .9rem 0; }
.card .where { color: #444; font-size: .88rem; margin: 0; } .card .effect { margin: .5rem 0 0; }
.muted, figcaption { color: #444; font-size: .88rem; }
.pipe { display: flex; flex-wrap: wrap; gap: .3rem; list-style: none; padding: 0; margin: .7rem 0; font-size: .86rem; }
.pipe li { border: 1px solid #999; border-radius: .3rem; padding: .15rem .6rem; background: #fff; }
.pipe .same { background: #eaf6ed; border-color: #19702f; } .pipe .off { background: #fdecee; border-color: #b00020; }
.pipe .harmless { background: #fdf5e2; border-color: #8a6100; } .pipe .unseen { color: #555; border-style: dashed; }
.pipe .first { outline: 3px solid #b00020; font-weight: bold; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; font-size: .92rem; }
th, td { text-align: left; padding: .22rem 1.1rem .22rem 0; vertical-align: baseline; }
td.n, th.n { text-align: right; white-space: nowrap; }
thead th { border-bottom: 2px solid #111; } tbody td { border-bottom: 1px solid #e0e0e0; }
td.off { color: #a3001d; font-weight: bold; } td:first-child { white-space: nowrap; }
.scroll { overflow-x: auto; }
figure { margin: 1rem 0 1.4rem; padding-left: .8rem; border-left: .3rem solid #ccc; } figure.same { border-color: #19702f; }
figure.off { border-color: #e2a0aa; } figure.first { border-color: #b00020; } figure.harmless { border-color: #c8961c; }
figure img { display: block; max-width: 100%; height: auto; } figure h3 { margin: 0; }
.mark { background: #b00020; color: #fff; border-radius: .25rem; padding: .05rem .45rem; font-size: .8rem; margin-left: .5rem; }
footer { margin-top: 2.5rem; border-top: 1px solid #999; padding-top: .4rem; }
@media (max-width: 40rem) { body { padding: .5rem .7rem 3rem; } .verdict p.says { font-size: 1.08rem; }
  td:first-child { white-space: normal; } th, td { padding-right: .6rem; } }
@media print { figure, tr, .card { break-inside: avoid; } h2 { break-after: avoid; } pre { white-space: pre-wrap; } }
"""


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
    name = report.get("name") or "an implementation"
    parts = [
        opening(report, kind, title, name), error(report), changes(report), conditions(report), behaviour(report),
        harmless(report), stages(report), probes(report), convention(report), versions(report),
    ]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{safe(title)}: {safe(name)}</title><style>{STYLE}</style></head><body>
{"".join(parts)}
</body></html>
"""


# ------------------------------------------------------------------------------------------------------------ what it says


def opening(report, kind, title, name):
    badge = f'<span class="badge">{safe(report["badge"])}</span>' if report.get("badge") else ""
    sentence = f'<p class="says">{safe(report["sentence"])}</p>' if report.get("sentence") else ""
    note = f"<p>{safe(report['note'])}</p>" if report.get("note") else ""
    return (
        f'<h1>SPARC\'s fine-grained loss, checked: <code>{safe(name)}</code></h1>\n<div class="verdict {kind}">'
        f'<span class="what">{safe(title)}</span>{sentence}{badge}</div>{note}'
    )


def error(report):
    if not report.get("error"):
        return ""
    said = report["error"]
    if isinstance(said, Mapping):
        head = ": ".join(str(said[key]) for key in ("type", "message") if said.get(key))
        lines = "".join(f"\n  {line}" for line in as_list(said.get("lines")))
        said = head + lines
    return f"<section><h2>What it raised</h2><pre>{safe(said)}</pre></section>"


def changes(report):
    found = [x for x in as_list(report.get("deviations")) if x]
    if not found:
        if report.get("verdict") != "unexplained":
            return ""
        where = f" The first stage that goes wrong is <b>{safe(report['stage'])}</b>." if report.get("stage") else ""
        return (
            "<section><h2>Where to look</h2><p>No known deviation, and no set of them, gives these losses and gradients, so no "
            f"cause is named here.{where} The figures and the probes below show the difference.</p></section>"
        )
    return f"<section><h2>What to change</h2>{''.join(card(x) for x in found)}</section>"


def card(x):
    """One deviation: words, equation, fix, effect, what it does to training."""
    if not isinstance(x, Mapping):
        return f'<div class="card"><h3>{safe(x)}</h3></div>'
    title = x.get("title") or x.get("id", "")
    where = ", ".join(safe(x[key]) for key in ("equation", "id") if x.get(key))
    out = [f'<div class="card"><h3>{safe(capital(title))}</h3><p class="where">{where}</p>']
    if x.get("words"):
        out.append(f"<p>{safe(capital(x['words']))}.</p>")
    if x.get("fix"):
        out.append(f"<pre>{safe(x['fix'])}</pre>")
    kinds = (("effect_loss", "the loss"), ("effect_gradient", "the gradient"))
    effects = [f"{what} by <b>{percent(x[key])}</b>" for key, what in kinds if number(x.get(key)) is not None]
    if effects:
        said = " and ".join(effects)
        out.append(f'<p class="effect">Putting this alone right changes {said} on an ordinary padded batch.</p>')
    if x.get("training"):
        out.append(f"<p><b>In training.</b> {safe(x['training'])}</p>")
    return "".join([*out, "</div>"])


def conditions(report):
    held = as_list(report.get("conditions"))
    if not held:
        return ""
    items = "".join(f"<li>{safe(x)}</li>" for x in held)
    return (
        f"<section><h2>Where it does agree</h2><p>Loss and gradient are right on every probe with"
        f"{' all of these' if len(held) > 1 else ''}:</p><ul>{items}</ul></section>"
    )


def behaviour(report):
    found = [x for x in as_list(report.get("behaviour")) if x]
    if not found:
        return ""
    items = []
    for x in found:
        if isinstance(x, Mapping):
            words = x.get("words") or x.get("title") or x.get("id", "")
            seen = x.get("evidence") or x.get("what") or x.get("why")
            items.append(f"<li><b>{safe(capital(words))}.</b> {safe(seen) if seen else ''}</li>")
        else:
            items.append(f"<li>{safe(x)}</li>")
    return f"<section><h2>Behaviour</h2><ul>{''.join(items)}</ul></section>"


def harmless(report):
    found = [x for x in as_list(report.get("harmless")) if x]
    if not found:
        return ""
    words = [x.get("words") or x.get("id", "") if isinstance(x, Mapping) else x for x in found]
    items = "".join(f"<li>{safe(capital(x))}</li>" for x in words)
    return f"<section><h2>Different and harmless</h2><ul>{items}</ul></section>"


def convention(report):
    rows = [x for x in as_list(report.get("convention")) if isinstance(x, Mapping)]
    if not rows:
        return ""
    body = "".join(
        f"<tr><td><code>{safe(x.get('what', ''))}</code></td><td>{safe(x.get('value', ''))}</td>"
        f'<td class="n">{sureness(x.get("sure"))}</td><td class="muted">{safe(x.get("why") or "")}</td></tr>' for x in rows
    )
    return (
        '<section><h2>How it was called</h2><p class="muted">Inferred by trying. Where a line is wrong, the verdict is: '
        'pass the right keyword and check again.</p><div class="scroll"><table><thead><tr><th>what</th><th>read as</th>'
        f'<th class="n">sure</th><th>because</th></tr></thead><tbody>{body}</tbody></table></div></section>'
    )


def sureness(x):
    value = number(x)
    return safe(x or "") if value is None else f"{value:.0%}"


def probes(report):
    rows = [x for x in as_list(report.get("probes")) if isinstance(x, Mapping)]
    if not rows:
        return ""
    body = []
    for x in rows:
        theirs, ours = first(x, "theirs", "loss_theirs"), first(x, "ours", "loss_ours")
        loss_off = first(x, "loss_off", "off_loss", "loss")
        gradient = first(x, "gradient_off", "off_gradient", "gradient")
        cells = [(shown(theirs), False), (shown(ours), False), (off_by(loss_off), differs(loss_off)),
                 (off_by(gradient), differs(gradient))]
        name = str(first(x, "probe", "name") or "")
        body.append(
            f"<tr><td>{safe(name.replace('_', ' '))}</td>"
            + "".join(f'<td class="n{" off" if wrong else ""}">{cell}</td>' for cell, wrong in cells)
            + f'<td class="muted">{safe(x.get("shows") or "")}</td></tr>'
        )
    return (
        '<section><h2>Probes</h2><div class="scroll"><table><thead><tr><th>batch</th><th class="n">loss: yours</th>'
        '<th class="n">reference</th><th class="n">off by</th><th class="n">gradient off by</th><th>shows</th></tr></thead>'
        f'<tbody>{"".join(body)}</tbody></table></div><p class="muted">The reference is eq. 6, or Listing 1 where that is '
        "nearer. A gradient is off by its largest error over its largest entry.</p></section>"
    )


def versions(report):
    known = report.get("versions") or {}
    items = [f"{safe(k)} {safe(v)}" for k, v in known.items() if v] if isinstance(known, Mapping) else [safe(known)]
    if number(report.get("seconds")) is not None:
        items.append(f"checked in {number(report['seconds']):.1f} s")
    return f'<footer class="muted">{", ".join(items)}</footer>' if items else ""


# ------------------------------------------------------------------------------------------------------------- the stages


def stages(report):
    found = {name: x for name, x in (report.get("stages") or {}).items() if isinstance(x, Mapping)}
    found = {name: x for name, x in found.items() if matrix(x.get("ours")) is not None}
    if not found:
        return ""
    order = [name for name in STAGES if name in found] + [name for name in found if name not in STAGES]
    marked = first_wrong(report, found, order)
    seen = any(matrix(found[name].get("theirs")) is not None for name in order)
    pipe = "".join(
        f'<li class="{state(found[name])}{" first" if name == marked else ""}">{safe(titled(name)[0])}: '
        f"{safe(said(found[name]))}</li>" for name in order
    )
    lead = (
        "The first caption of a padded batch, one row a token. Yours are the tensors that your code made on the way."
        if seen else "Tracing your code showed none of these stages, so there is nothing to draw: what is known comes from "
        "values and gradients."
    )
    figures = "".join(stage_figure(name, found[name], name == marked) for name in order if seen)
    return f'<section><h2>Stage by stage</h2><p>{lead}</p><ol class="pipe">{pipe}</ol>{figures}</section>'


def first_wrong(report, found, order):
    """The stage to mark: the one that the report names, or else the first one seen to differ."""
    named = str(report.get("stage") or "")
    if report.get("verdict") not in ("eq6", "listing1"):
        for name in (named, *FIRST.get(named, ())):
            if name in found:
                return name
    return next((name for name in order if state(found[name]) == "off"), None) if not named else None


def state(x):
    if matrix(x.get("theirs")) is None:
        return "unseen"
    if x.get("harmless"):
        return "harmless"
    return "off" if differs(x.get("off"), nothing=True) else "same"


def said(x):
    return {
        "unseen": "not seen", "harmless": "differs by a factor of each row, harmless", "same": "equal",
        "off": f"off by {off_by(x.get('off')) or 'some'}",
    }[state(x)]


def titled(name):
    return STAGES.get(name, (capital(str(name).replace("_", " ")), "", ""))


def stage_figure(name, x, marked):
    title, columns, equation = titled(name)
    kind = "first" if marked else state(x)
    mark = '<span class="mark">goes wrong here first</span>' if marked else ""
    drawn, width = stage_figures.picture(matrix(x["ours"]), matrix(x.get("theirs")), columns, signed=name not in POSITIVE)
    alt = f"{title}: yours beside the reference, {said(x)}"
    caption = "; ".join(safe(words) for words in (equation, said(x)) if words)
    return (
        f'<figure class="{kind}"><h3>{safe(title)}{mark}</h3><figcaption>{caption}</figcaption>'
        f'<img alt="{safe(alt)}" width="{width}" src="data:image/png;base64,{drawn}"></figure>'
    )


# --------------------------------------------------------------------------------------------------------------- numbers


def matrix(x):
    """Nested lists as float64 (N,M); None for anything else.  JSON has no NaN: null and texts stand for it."""
    import numpy as np

    if x is None:
        return None

    def plain(value):
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return math.nan if value is None else float(value)

    try:
        array = np.array(plain(x.tolist() if hasattr(x, "tolist") else x), dtype=np.float64)
    except (TypeError, ValueError):
        return None
    array = array[None] if array.ndim == 1 else array
    return array if array.ndim == 2 and array.size else None


def number(x: Any) -> float | None:
    """A number, also one that JSON had to write as text; None for anything else."""
    if x is None or isinstance(x, bool):
        return None
    try:
        return float(x)
    except (TypeError, ValueError):
        return None


def differs(x, nothing=False):
    """Is a relative difference more than rounding?  nothing: what to say of no number at all."""
    value = number(x)
    return nothing if value is None else not value <= 1e-6


def shown(x):
    value = number(x)
    return safe("" if x is None else x) if value is None else ("0" if value == 0 else f"{value:.6g}")


def off_by(x):
    value = number(x)
    if value is None:
        return "" if x is None else safe(x)
    if math.isnan(value):
        return "NaN"
    return "0" if value == 0 else f"{value:.0e}" if value < 1e-4 else percent(value)


def percent(x):
    value = number(x)
    if value is None or not math.isfinite(value):
        return "NaN" if value is None or math.isnan(value) else "∞"
    return f"{value:.0%}" if value >= 0.095 else f"{value:.1%}" if value >= 0.00095 else f"{value:.1e}" if value else "0"


def first(x, *names):
    return next((x[name] for name in names if x.get(name) is not None), None)


def as_list(x) -> list:
    if x is None:
        return []
    return list(x) if isinstance(x, Iterable) and not isinstance(x, str | Mapping) else [x]


def capital(text):
    text = str(text)
    return text[:1].upper() + text[1:]


def safe(text: Any) -> str:
    """Text for HTML, quotes included; control characters made visible, and those that turn the text around."""
    visible = "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in str(text))
    return html.escape(visible, quote=True)
