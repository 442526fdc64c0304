"""A stage as a picture, theirs beside ours and what is between them, for the verdict's page."""

import base64
import io
import math

DPI = 96


def picture(ours, theirs, columns: str = "", signed: bool = True) -> tuple[str, int]:
    """Theirs, ours and their difference as images, one row a token.      arrays (N,M) or None

    columns: what the columns are.  signed: numbers of both signs, else from 0 up.
    Returns the base64 of a PNG with two dots to the pixel, and its width in pixels.
    """
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure

    comparable = theirs is not None and theirs.shape == ours.shape
    panels = [("yours", theirs), ("reference", ours)] + ([("yours − reference", theirs - ours)] if comparable else [])
    shapes = [x.shape for _, x in panels if x is not None]
    values = np.concatenate([x[np.isfinite(x)].ravel() for _, x in panels[:2] if x is not None] or [np.zeros(1)])
    top = max(float(np.abs(values).max()) if values.size else 1.0, 1e-12)
    rows, across = max(s[0] for s in shapes), max(s[1] for s in shapes)
    numbered = across <= 10 and rows * across <= 120
    width = across * (0.325 if numbered else min(0.3, 2.9 / across))  # of a panel, in inches: three fit the page
    height = min(max(rows * (0.3 if numbered else 0.22), 0.35), 4.0)
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 8}):
        figure = Figure(figsize=((width + 0.35) * len(panels) + 0.5, height + 0.65))
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        figure.subplots_adjust(left=0.42 / figure.get_figwidth(), right=1 - 0.1 / figure.get_figwidth(), wspace=0.12,
                               top=1 - 0.3 / figure.get_figheight(), bottom=0.35 / figure.get_figheight())
        for i, (ax, (words, x)) in enumerate(zip(axes, panels)):
            ax.set_title(words, fontsize=9)
            if x is None:
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_color("#999")
                ax.text(0.5, 0.5, "not seen", ha="center", va="center", transform=ax.transAxes, color="#555")
                continue
            change = i == 2
            limit = max(float(np.abs(x[np.isfinite(x)]).max(initial=0.0)), 1e-9 * top) if change else top
            colours = matplotlib.colormaps["RdBu_r" if signed or change else "Greys"].with_extremes(bad="#f2c230")
            ax.pcolormesh(np.ma.masked_invalid(x), cmap=colours, vmin=-limit if signed or change else 0.0, vmax=limit,
                          edgecolors="#ffffff", linewidth=0.4)
            ax.set(xlim=(0, x.shape[1]), ylim=(x.shape[0], 0), xticks=[], yticks=np.arange(x.shape[0]) + 0.5)
            ax.set_yticklabels(range(x.shape[0]) if i == 0 or not comparable else [], fontsize=7)
            ax.tick_params(length=0, pad=2)
            ax.set_xlabel(columns if i or not columns else f"{x.shape[1]} {columns}", fontsize=7.5, labelpad=3)
            if i == 0:
                ax.set_ylabel("token", fontsize=7.5, labelpad=1)
            ax.spines[:].set_color("#999")
            if numbered:
                annotate(ax, x, limit, signed or change)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=2 * DPI, metadata={"Software": None})
    return base64.b64encode(out.getvalue()).decode(), round(figure.get_figwidth() * DPI)


def annotate(ax, x, limit, signed):
    """Numbers in the cells, light on dark."""
    for (j, k), value in _cells(x):
        text = "NaN" if math.isnan(value) else "∞" if math.isinf(value) else "0" if value == 0 else f"{value:.2g}"
        if value and math.isfinite(value) and abs(value) < 0.001 * limit:
            text = "≈0"
        dark = math.isfinite(value) and abs(value) > (0.62 if signed else 0.55) * limit
        ax.text(k + 0.5, j + 0.52, text.replace("0.", ".").replace("-", "−"), ha="center", va="center", fontsize=5.6,
                color="#fff" if dark else "#222")


def _cells(x):
    return (((j, k), float(x[j, k])) for j in range(x.shape[0]) for k in range(x.shape[1]))
