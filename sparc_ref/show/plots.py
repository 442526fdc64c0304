"""What a person looks at: learning curves, predicted against true masks; maps.py draws what each word looks at.

Every function returns a matplotlib Figure made with the object interface: no pyplot, no global state, no window.
Colours are perceptually uniform (dark = high) and lines differ in dash and marker too, so that all of it survives a grey
printer and colour-blind eyes.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LINES = (("#000000", "-", "o"), ("#c44e00", "--", "s"), ("#0072b2", "-.", "^"), ("#009e73", ":", "D"))
SMALL, NORMAL = 9, 11                                             # font sizes, points


@dataclass(frozen=True)
class Panel:
    """One measure over training: the key in the rows of the metrics, a title that says what is seen, the axis' unit.

    chance: a number, or the key of a row that holds it; drawn as a thin grey line where it is known.
    """

    key: str
    title: str
    unit: str = ""
    chance: float | str | None = None


PANELS = (
    Panel("loss_global", "Global loss on training batches", "nats"),
    Panel("loss_fine", "Fine-grained loss on training batches", "nats"),
    Panel("t2i_r1", "Retrieval: caption finds its picture first", "share of captions", "t2i_r1_chance"),
    Panel("pointing", "Localisation: a name's top patch is on its object", "share of names", "pointing_chance"),
    Panel("choice", "Localisation: a name picks its object among others", "share of names", "choice_chance"),
    Panel("miou", "Zero-shot segmentation", "mean IoU", "miou_chance"),
    Panel("grounding_gap", "Grounding gap: loss with shuffled minus true pictures", "nats", 0.0),
)


def curves(series: Mapping[str, Sequence[Mapping[str, Any]]], panels: Sequence[Panel] = PANELS, *, points: int = 60):
    """Learning curves of several models, one panel per measure that any of them has.

    series: {model: rows}, a row is a dict with "step" and any numbers (a line of metrics.jsonl). Rows may lack a key.
    Where rows name several splits, the first one is drawn. Long curves are drawn as the means of about `points` blocks.
    Returns a Figure; ValueError: nothing to draw.
    """
    found = [(p, {name: curve(rows, p.key) for name, rows in series.items()}) for p in panels]
    found = [(p, {n: c for n, c in lines.items() if len(c[0])}) for p, lines in found]
    found = [(p, lines) for p, lines in found if lines]
    if not found:
        raise ValueError(f"series: expected rows with a step and one of {[p.key for p in panels]}, found none")
    styles = {name: LINES[i % len(LINES)] for i, name in enumerate(series)}
    across = min(len(found), 2)
    down = -(-len(found) // across)
    figure = new_figure((5.4 * across, 2.9 * down), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.08)
    for i, (panel, lines) in enumerate(found):
        ax = figure.add_subplot(down, across, i + 1)
        ends = []
        for name, (step, value) in lines.items():
            colour, dash, marker = styles[name]
            blocks = max(len(step) // points, 1)
            step, value = block_means(step, blocks), block_means(value, blocks)
            ax.plot(step, value, color=colour, linestyle=dash, linewidth=1.8, marker=marker, markersize=5,
                    markevery=max(len(step) // 8, 1), label=clean(name))
            ends.append((float(value[-1]), name, colour))
        note = " (means of blocks)" if any(len(c[0]) >= 2 * points for c in lines.values()) else ""
        ax.set_title(panel.title + note, fontsize=NORMAL, loc="left")
        ax.set_xlabel("training step", fontsize=SMALL + 1)
        ax.set_ylabel(panel.unit, fontsize=SMALL + 1)
        ax.tick_params(labelsize=SMALL)
        ax.spines[["top", "right"]].set_visible(False)
        base = chance_of(panel, series)
        if base is not None:
            ax.axhline(base, color="#777777", linewidth=1, linestyle=(0, (1, 2)))
        label_ends(ax, ends, base if panel.chance != 0.0 else None)
    return figure


def curve(rows, key):
    """Steps and values of the rows that have a finite number under this key; of several splits, the first one's."""
    rows = [r for r in rows if is_number(r.get("step")) and is_number(r.get(key))]
    pairs = [(r["step"], r[key]) for r in rows if r.get("split") == rows[0].get("split")]
    return np.array([s for s, _ in pairs], np.float64), np.array([v for _, v in pairs], np.float64)


def chance_of(panel, series):
    if not isinstance(panel.chance, str):
        return panel.chance
    values = [r[panel.chance] for rows in series.values() for r in rows if is_number(r.get(panel.chance))]
    return float(np.mean(values)) if values else None


def is_number(x):
    return isinstance(x, (int, float, np.number)) and not isinstance(x, bool) and bool(np.isfinite(x))


def block_means(x, size):
    return np.array([np.mean(x[a:a + size]) for a in range(0, len(x), size)])


def label_ends(ax, ends, chance):
    """Names at the right end of their lines, moved apart where they would overlap."""
    low, high = ax.get_ylim()
    if chance is not None:
        ends = [*ends, (chance, "chance", "#666666")]
    ends = sorted(ends)
    need = 0.10
    at = [(y - low) / (high - low) for y, _, _ in ends]
    for i in range(1, len(at)):
        at[i] = max(at[i], at[i - 1] + need)
    over = max(at[-1] - 1.0, 0.0)
    at[-1] -= over
    for i in range(len(at) - 2, -1, -1):
        at[i] = min(at[i], at[i + 1] - need)
    for y, (_, name, colour) in zip(at, ends):
        ax.text(1.02, y, shortened(clean(name), 22), transform=ax.transAxes, color=colour, fontsize=SMALL + 0.5, va="center")


def masks(
    images: Sequence[np.ndarray], truths: Sequence[np.ndarray], predictions: Mapping[str, Sequence[np.ndarray]],
    classes: Sequence[str], *, title: str | None = None, most: int = 6,
):
    """Predicted against true masks: a column per picture; the picture, the true masks, one row per model.

    images (H,W,3) uint8, truths and predictions (H,W) int, class numbers, -1 background. predictions: {model: one per image}.
    Regions carry numbers, explained under each column. Predictions outside the true objects are pale: they count as false
    positives. Beyond `most` classes per picture, those with the least area are drawn grey, without a number.
    """
    if not len(images) or any(len(x) != len(images) for x in (truths, *predictions.values())):
        raise ValueError(f"expected as many truths and predictions as pictures, {len(images)} >= 1, "
                         f"got {len(truths)} and {[len(x) for x in predictions.values()]}")
    N, names = len(images), ["picture", "true", *map(clean, predictions)]
    numbered = max(most, *(int(np.sum(np.unique(x) >= 0)) for x in truths))
    width, left, under = 1.75, 1.25, 0.24 + 0.17 * (numbered + 2)
    head = 0.45 if title else 0.1
    size = (left + N * width + 0.1, head + len(names) * width + under)
    figure = new_figure(size)
    if title:
        figure.text(0.1 / size[0], 1 - 0.1 / size[1], clean(title), fontsize=NORMAL + 1, va="top")
    for r, name in enumerate(names):
        figure.text((left - 0.12) / size[0], 1 - (head + (r + 0.5) * width) / size[1], wrapped(name, 14), fontsize=NORMAL,
                    ha="right", va="center")
    for n in range(N):
        truth = np.asarray(truths[n])
        rows = {name: np.asarray(x[n]) for name, x in predictions.items()}
        numbers = numbering(truth, rows.values(), most, len(classes))
        for r in range(len(names)):
            y = head + r * width
            ax = figure.add_axes(((left + n * width) / size[0], 1 - (y + width * 0.95) / size[1],
                                  width * 0.95 / size[0], width * 0.95 / size[1]))
            if r == 0:
                show(ax, pictures(images[n]))
            else:
                draw_labels(ax, truth if r == 1 else list(rows.values())[r - 2], truth, numbers)
        true = set(np.unique(truth).tolist())
        text = [f"{i} {clean(classes[k])}" for k, i in numbers.items() if k in true]
        absent = [f"{i} {clean(classes[k])}" for k, i in numbers.items() if k not in true]
        text += ["not in the picture:", *absent] if absent else []
        others = {k for x in rows.values() for k in np.unique(x).tolist() if k >= 0} - numbers.keys()
        text += [f"grey: {len(others)} more classes" if len(others) > 1 else "grey: 1 more class"] if others else []
        figure.text((left + n * width) / size[0], (under - 0.1) / size[1], "\n".join(text), fontsize=SMALL, va="top",
                    linespacing=1.25)
    return figure


def numbering(truth, predictions, most, classes):
    """{class: its number in this column}: the true ones first, then the most predicted."""
    area = np.zeros(classes)
    for x in predictions:
        area += np.bincount(x[(x >= 0) & (x < classes)], minlength=classes)
    true = [int(k) for k in np.unique(truth) if 0 <= k < classes]
    rest = [int(k) for k in np.argsort(-area, kind="stable") if area[k] and k not in true]
    return {k: i + 1 for i, k in enumerate([*true, *rest][:max(most, len(true))])}


def draw_labels(ax, labels, truth, numbers):
    from matplotlib import colormaps

    colours = 255 * colormaps["viridis"](np.linspace(0.05, 0.95, max(len(numbers), 2)))[:, :3]
    picture = np.full((*labels.shape, 3), 255.0)
    picture[labels >= 0] = 190
    for k, i in numbers.items():
        picture[labels == k] = colours[i - 1]
    background = (truth < 0) & (labels >= 0)
    picture[background] = 255 + 0.45 * (picture[background] - 255)
    show(ax, picture.astype(np.uint8))
    edges = np.zeros(truth.shape)
    for i, k in enumerate(np.unique(truth[truth >= 0])):
        edges[truth == k] = i + 1
    for k in np.unique(edges[edges > 0]):
        ax.contour(edges == k, levels=[0.5], colors="black", linewidths=0.9)
    for k, i in numbers.items():
        at = labels == k
        inside = at & (truth >= 0)
        spot = np.argwhere(inside if inside.sum() >= 0.004 * at.size else at)
        if inside.sum() >= 0.004 * at.size or at.sum() >= 0.03 * at.size:
            y, x = spot[np.argmin(np.sum((spot - np.median(spot, axis=0)) ** 2, axis=1))]
            ax.text(x, y, str(i), fontsize=SMALL, ha="center", va="center", color="black",
                    bbox={"boxstyle": "circle,pad=0.12", "facecolor": "white", "edgecolor": "black", "linewidth": 0.6})


def png(figure, dpi: int = 150) -> bytes:
    """A figure as a PNG file."""
    import warnings

    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")      # a box stands for it: an emoji in a caption
        figure.savefig(out, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def new_figure(size, **options):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, facecolor="white", **options)
    FigureCanvasAgg(figure)
    return figure


def pictures(image):
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image: expected (H,W,3) uint8, got {image.shape} {image.dtype}")
    return image


def show(ax, image):
    ax.imshow(image, interpolation="nearest")
    bare(ax)


def bare(ax):
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set(linewidth=0.5, color="#999999")


def digits(x, significant=2):
    """A number in so many digits, written out: 580, 0.0031; a power of ten only where that would take a long row of zeros."""
    x = float(f"{x:.{significant}g}")
    return np.format_float_positional(x, trim="-") if x == 0 or 1e-4 <= abs(x) < 1e7 else f"{x:g}"


def scale(x):
    low, high = float(np.min(x)), float(np.max(x))
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def clean(text):
    """Text that matplotlib prints as it is: no dollar mathematics, no line breaks, no control characters."""
    return "".join(c if c.isprintable() else " " for c in str(text)).replace("$", r"\$")


def shortened(text, width):
    return text if len(text) <= width else text[:width - 1] + "…"


def wrapped(text, width):
    import textwrap

    return "\n".join(textwrap.wrap(text, width))
