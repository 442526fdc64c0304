"""Pictures of predictions: true boxes dashed, found ones solid, with names and scores; in black on white, for grey."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from parity.trainer.detection.data import Annotated
from sparc_ref.run.files import write_whole

LEAST, MOST, ACROSS = 0.3, 12, 4                          # score and number of boxes that are drawn; pictures in a row
SMALL = 7                                                 # points


def draw(shown: Sequence[tuple[np.ndarray, Annotated, tuple]], classes: Sequence[str], folder: Path) -> list[str]:
    """A sheet of pictures.      -> the names of the files written"""
    if not shown:
        return []
    write_whole(folder / "detections.png", png(sheet(shown, classes)))
    return ["detections.png"]


def sheet(shown: Sequence[tuple[np.ndarray, Annotated, tuple]], classes: Sequence[str]):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(ACROSS, len(shown))
    down = -(-len(shown) // across)
    figure = Figure(figsize=(3.2 * across, 3.3 * down + 0.4), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"dashed: true boxes; solid: found, score from {LEAST} on", fontsize=SMALL + 2, x=0.01, ha="left")
    for n, (image, annotated, (box, label, score)) in enumerate(shown):
        ax = figure.add_subplot(down, across, n + 1)
        width, height = annotated.size
        ax.imshow(image, extent=(0, width, height, 0), interpolation="nearest")
        for each in annotated.box[~annotated.crowd]:
            outline(ax, each, "dashed", 1.0)
        best = np.flatnonzero(score >= LEAST)[:MOST]
        for m in best[::-1]:                              # the best one on top
            outline(ax, box[m], "solid", 1.5)
            ax.text(box[m, 0], max(box[m, 1], 0), f"{clean(classes[label[m]])} {score[m]:.2f}", fontsize=SMALL, va="top",
                    clip_on=True, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85})
        ax.set_xlim(0, width)
        ax.set_ylim(height, 0)
        ax.set_xticks([])
        ax.set_yticks([])
        true = int((~annotated.crowd).sum())
        ax.set_title(f"{annotated.key}: {len(best)} found, {true} true", fontsize=SMALL + 1, loc="left")
    return figure


def outline(ax, box: np.ndarray, style: str, width: float) -> None:
    """A black line on a wider white one, seen on any ground."""
    from matplotlib.patches import Rectangle

    x, y, w, h = box.tolist()
    for colour, more in (("white", 1.4), ("black", 0.0)):
        if style == "solid" or not more:
            ax.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=colour, linestyle=style, linewidth=width + more))


def clean(text: str) -> str:
    """As matplotlib prints it: no mathematics, nothing that cannot be seen."""
    return "".join(c if c.isprintable() else " " for c in text).replace("$", r"\$")[:30]


def png(figure) -> bytes:
    import io
    import warnings

    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(out, format="png", dpi=130, facecolor="white", metadata={"Software": None})
    return out.getvalue()
