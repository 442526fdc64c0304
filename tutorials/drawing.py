"""How every figure of the tutorials looks, and how a reader steps through one.

Rules: large type (read from the last row), colours that colour-blind eyes tell apart (Okabe and Ito), lines that differ in dash
and marker too, heat from light (low) to dark (high) so that grey keeps the order, numbers in the cells where they fit.
`show` puts a PNG into the notebook; with TUTORIAL_FIGURES=folder it writes SVG and PDF for slides there as well.
"""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.figure import Figure

HEAT, SIGNED = "YlGnBu", "PuOr"
LINES = (("#000000", "-", "o"), ("#D55E00", "--", "s"), ("#0072B2", "-.", "^"), ("#009E73", ":", "D"),
         ("#CC79A7", (0, (6, 2)), "v"), ("#E69F00", (0, (1, 1)), "P"))
GREY = "#666666"
STYLE = {
    "font.size": 15, "axes.titlesize": 15, "axes.labelsize": 15, "xtick.labelsize": 13, "ytick.labelsize": 13,
    "legend.fontsize": 13, "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 2.5, "lines.markersize": 7,
    "svg.hashsalt": "sparc_ref", "legend.frameon": False, "axes.titlelocation": "left",
}
rcParams.update(STYLE)


def panels(count: int = 1, height: float = 3.4, widths: list[float] | None = None) -> tuple[Figure, list[Any]]:
    """A figure as wide as a notebook's column and `count` axes side by side."""
    figure = Figure(figsize=(11, height), layout="constrained")
    return figure, list(figure.subplots(1, count, width_ratios=widths, squeeze=False)[0])


def line(ax: Any, i: int, x: Any, y: Any, label: str | None = None, **more: Any) -> None:
    """The i-th kind of line: its own colour, dash and marker."""
    colour, dash, marker = LINES[i]
    ax.plot(x, y, **{"color": colour, "linestyle": dash, "marker": marker, "label": label, **more})


def matrix(ax: Any, x: Any, title: str, rows: list[str] | None = None, columns: list[str] | None = None, *, digits: int = 2,
           low: float | None = None, high: float | None = None, signed: bool = False, reach: float | None = None,
           zeros: str | None = None) -> None:
    """A small matrix with its numbers.      x (N,M); zeros: what stands for an exact 0

    signed: orange below 0, purple above, the darkest at -reach and reach (the largest entry unless given).
    """
    x = np.atleast_2d(np.asarray(x, float))
    reach = max(np.abs(x).max(), 1e-12) if reach is None else reach
    low, high = (-reach, reach) if signed else (x.min() if low is None else low, x.max() if high is None else high)
    high = high if high > low else low + 1
    ax.imshow(x, cmap=SIGNED if signed else HEAT, vmin=low, vmax=high, aspect="auto")
    for (r, c), value in np.ndenumerate(x):
        at = abs(value) / reach if signed else (value - low) / (high - low)
        words = zeros if zeros is not None and value == 0 else f"{round(value, digits) + 0.0:.{digits}f}"
        ax.text(c, r, words, ha="center", va="center", color="white" if at > 0.6 else "black", fontsize=14)
    ax.set_xticks(range(x.shape[1]), columns or [""] * x.shape[1])
    ax.set_yticks(range(x.shape[0]), rows or [""] * x.shape[0])
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    ax.set_title(title)


def heat(ax: Any, x: Any, title: str, low: float | None = None, high: float | None = None) -> None:
    """A larger map without numbers.      x (H,W)"""
    ax.imshow(x, cmap=HEAT, vmin=low, vmax=high, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set_visible(False)
    ax.set_title(title)


def show(figure: Figure, name: str) -> None:
    """Into the notebook as a PNG; into $TUTORIAL_FIGURES, if that is set, as name.svg, name.pdf and name.png."""
    if folder := os.environ.get("TUTORIAL_FIGURES"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        for kind in ("svg", "pdf", "png"):
            when = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
            figure.savefig(Path(folder) / f"{name}.{kind}", metadata=when, dpi=80)
    if in_notebook():
        from IPython.display import Image, display

        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=72, metadata={"Software": None})
        display(Image(picture.getvalue(), alt=name))


def step(draw: Callable[..., Figure], **choices: Any) -> None:
    """Sliders for draw's arguments, where ipywidgets and somebody to move them are there; else nothing, and nothing is lost."""
    if not in_notebook() or os.environ.get("TUTORIAL_STATIC"):
        return
    try:
        from ipywidgets import interact
    except ImportError:
        return

    def redraw(**chosen: Any) -> None:
        show(draw(**chosen), draw.__name__)

    interact(redraw, **choices)


def in_notebook() -> bool:
    """Is this a kernel that shows pictures?"""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")
