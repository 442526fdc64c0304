"""The verdict page's figures: each stage theirs beside ours, and what is between them; the first that goes wrong is marked."""

import base64
import io
import math
from collections.abc import Mapping

from parity.checker.page.text import as_list, capital, differs, off_by, safe, visible

DPI = 96
STAGES = {                                                # name -> title
    "similarity": "Similarity", "minmax": "Min-max", "sparse": "Threshold", "weights": "Weights", "grouped": "Grouped patches",
    "logits_vt": "Logits", "logits_tv": "Logits, other direction", "loss_vt": "Loss of groups", "loss_tv": "Loss of tokens",
}
FIRST = {                                                 # a deviation's stage -> the figures in which it first shows
    "threshold": ("sparse", "weights"), "grouping": ("grouped",), "norm": ("logits_vt",), "logits": ("logits_vt",),
    "loss": ("loss_vt",),
}
POSITIVE = ("minmax", "sparse", "weights", "loss_vt", "loss_tv")


def stages(report):
    found = [x for x in as_list(report.get("stages")) if isinstance(x, Mapping) and matrix(x.get("ours")) is not None]
    if not found:
        return ""
    if report.get("verdict") in ("eq6", "listing1"):      # all is equal: an array that is off is none of these stages
        found = [x | {"theirs": None} if state(x) == "off" else x for x in found]
    marked = first_wrong(report, found)
    seen = any(matrix(x.get("theirs")) is not None for x in found)
    pipe = "".join(
        f'<li class="{state(x)}{" first" if x is marked else ""}">{safe(titled(x))}: {safe(said(x))}</li>' for x in found
    )
    batch = safe(str(found[0].get("probe") or "padded").replace("_", " "))
    lead = (
        f"The real tokens of one caption of the batch “{batch}”. Yours are arrays that your code made on the way."
        if seen else "Tracing your code showed none of these stages, so there is nothing to draw: what is known comes from "
        "values and gradients."
    )
    most = max([biggest(x) for x in found], default=0.0)
    drawn = [x for x in found if seen and (x is marked or state(x) != "unseen")]
    figures = "".join(stage_figure(x, x is marked, most) for x in drawn)
    return f'<section><h2>Stage by stage</h2><p>{lead}</p><ol class="pipe">{pipe}</ol>{figures}</section>'


def first_wrong(report, found):
    """The stage to mark: the one that the report names, or else the first one seen to differ.

    A stage that the picture shows equal is never marked.
    """
    if report.get("verdict") in ("eq6", "listing1"):
        return None
    named = str(report.get("stage") or "")
    there = [x for name in (named, *FIRST.get(named, ())) for x in found if x.get("name") == name]
    for wanted in (("off",), ("unseen",)):
        if match := [x for x in there if state(x) in wanted]:
            return match[0]
    return next((x for x in found if state(x) == "off"), None)


def state(x):
    """ "same" | "off" | "harmless": only a factor of each row is between them | "unseen" """
    theirs = matrix(x.get("theirs"))
    if theirs is None:
        return "unseen"
    if differs(x.get("off"), nothing=True):
        return "off"
    ours = matrix(x["ours"])
    same = theirs.shape == ours.shape and abs(theirs - ours).max() <= 1e-4 * abs(ours).max()
    return "same" if same else "harmless"


def said(x):
    return {
        "unseen": "not seen", "harmless": "a factor of each row, harmless", "same": "equal",
        "off": f"off by {off_by(x['off'])}" if x.get("off") is not None else "not finite",
    }[state(x)]


def titled(x):
    name = str(x.get("name", ""))
    return STAGES.get(name, capital(name.replace("_", " ")))


def stage_figure(x, marked, most):
    kind = "first" if marked else state(x)
    mark = '<span class="mark">goes wrong here first</span>' if marked else ""
    rows, columns = (visible(x.get(key) or "").replace("width", "dimensions") for key in ("rows", "columns"))
    drawn, width = picture(
        matrix(x["ours"]), matrix(x.get("theirs")), rows, columns,
        signed=x.get("name") not in POSITIVE, name=str(x.get("name", "")), most=most,
    )
    where = f"yours: <code>{safe(x['where'])}</code>" if x.get("where") else ""
    caption = "; ".join(words for words in (safe(x.get("equation") or ""), safe(said(x)), where) if words)
    return (
        f'<figure class="{kind}"><h3>{safe(titled(x))}{mark}</h3><figcaption>{caption}</figcaption>'
        f'<div class="scroll"><img alt="{safe(titled(x))}: yours beside the reference, {safe(said(x))}" width="{width}" '
        f'src="data:image/png;base64,{drawn}"></div></figure>'
    )


def change(ours, theirs, name: str):
    """Yours - reference, in the units in which "off by" is measured: of rows of length 1, or of the largest entry."""
    import numpy as np

    if name.startswith(("logits", "loss")):
        return (theirs - ours) / max(float(np.abs(ours).max()), 1e-12)
    one, two = (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-300) for x in (ours, theirs))
    return two - one


def biggest(x) -> float:
    """The largest entry of what is between theirs and ours; 0 where nothing is."""
    import numpy as np

    ours, theirs = matrix(x["ours"]), matrix(x.get("theirs"))
    if theirs is None or theirs.shape != ours.shape:
        return 0.0
    difference = change(ours, theirs, str(x.get("name", "")))
    return float(np.abs(difference[np.isfinite(difference)]).max(initial=0.0))


def picture(ours, theirs, rows: str = "", columns: str = "", signed: bool = True, name: str = "", most: float = 0.0):
    """Theirs, ours and their difference as images.      arrays (N,M) or None

    rows, columns: what they are.  signed: numbers of both signs, else from 0 up.  most: where the scale of differences ends,
    one for a page; what is equal is grey.
    Returns the base64 of a PNG with two dots to the pixel, and its width in pixels.
    """
    import matplotlib
    import matplotlib.colors
    import numpy as np
    from matplotlib.figure import Figure

    comparable = theirs is not None and theirs.shape == ours.shape
    panels = [("yours", theirs), ("reference", ours)]
    units = "of the largest" if name.startswith(("logits", "loss")) else "rows of length 1"
    panels += [("yours − reference", change(ours, theirs, name))] if comparable else []
    shapes = [x.shape for _, x in panels if x is not None]
    values = np.concatenate([x[np.isfinite(x)].ravel() for _, x in panels[:2] if x is not None] or [np.zeros(1)])
    top = max(float(np.abs(values).max()) if values.size else 1.0, 1e-12)
    down, across = max(s[0] for s in shapes), max(s[1] for s in shapes)
    numbered = across <= 10 and down * across <= 120
    width = across * (0.325 if numbered else min(0.3, 2.9 / across))  # of a panel, in inches: three fit the page
    height = min(max(down * (0.3 if numbered else 0.22), 0.35), 4.0)
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 8}):
        figure = Figure(figsize=((width + 0.35) * len(panels) + 0.5, height + 0.65))
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        figure.subplots_adjust(left=0.42 / figure.get_figwidth(), right=1 - 0.1 / figure.get_figwidth(), wspace=0.12,
                               top=1 - 0.3 / figure.get_figheight(), bottom=0.35 / figure.get_figheight())
        for i, (ax, (title, x)) in enumerate(zip(axes, panels)):
            ax.set_title(title, fontsize=9)
            if x is None:
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_color("#999")
                ax.text(0.5, 0.5, "not seen", ha="center", va="center", transform=ax.transAxes, color="#555")
                continue
            between = i == 2
            limit = max(most, 1e-5) if between else top
            colours = matplotlib.colormaps["RdBu_r" if signed or between else "Greys"].with_extremes(bad="#f2c230")
            ax.pcolormesh(np.ma.masked_invalid(x), cmap=colours, vmin=-limit if signed or between else 0.0, vmax=limit,
                          edgecolors="#ffffff", linewidth=0.4)
            if between:                                   # equal is grey, so that white is no small difference
                equal = np.ma.masked_where(~(np.abs(np.nan_to_num(x, nan=1.0)) < 1e-5), np.zeros_like(x))
                ax.pcolormesh(equal, cmap=matplotlib.colors.ListedColormap(["#d5d5d5"]), edgecolors="#ffffff", linewidth=0.4)
            ax.set(xlim=(0, x.shape[1]), ylim=(x.shape[0], 0), xticks=[], yticks=np.arange(x.shape[0]) + 0.5)
            ax.set_yticklabels(range(x.shape[0]) if i == 0 or not comparable else [], fontsize=7)
            ax.tick_params(length=0, pad=2)
            words = units if between else columns if i or not columns else f"{x.shape[1]} {columns}"
            ax.set_xlabel(words, fontsize=7.5, labelpad=3, parse_math=False)
            if i == 0:
                ax.set_ylabel(rows, fontsize=7.5, labelpad=1, parse_math=False)
            ax.spines[:].set_color("#999")
            if numbered:
                annotate(ax, x, limit, signed or between)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=2 * DPI, metadata={"Software": None})
    return base64.b64encode(out.getvalue()).decode(), round(figure.get_figwidth() * DPI)


def annotate(ax, x, limit, signed):
    """Numbers in the cells, light on dark."""
    for (j, k), value in _cells(x):
        text = "NaN" if math.isnan(value) else "∞" if math.isinf(value) else "0" if value == 0 else f"{value:.2g}"
        if value and math.isfinite(value) and abs(value) < max(0.001 * limit, 1e-5):
            text = "≈0"
        dark = math.isfinite(value) and abs(value) > (0.62 if signed else 0.55) * limit
        ax.text(k + 0.5, j + 0.52, text.replace("0.", ".").replace("-", "−"), ha="center", va="center", fontsize=5.6,
                color="#fff" if dark else "#222")


def _cells(x):
    return (((j, k), float(x[j, k])) for j in range(x.shape[0]) for k in range(x.shape[1]))


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
