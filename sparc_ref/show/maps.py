"""What each word of a caption looks at: a column per word, a row per model and stage, and the word's own region on top.

One code in every row: pale is not the word's, dark is. Ticks along an outline point into the region. Lightness alone carries
it, so that a grey printer and colour-blind eyes lose nothing; the ground is white on a dark page too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparc_ref.evaluate.grouping import patch_cover
from sparc_ref.evaluate.segmentation import centre
from sparc_ref.show.plots import bare, clean, digits, new_figure, pictures, scale, shortened, wrapped

if TYPE_CHECKING:
    from sparc_ref.run.examples import Explained

HEAT = "Blues"                                            # light = low, dark = high
OUTLINE = "#d55e00"
SMALL, NORMAL, LARGE = 11.0, 12.5, 16.0                   # font sizes, points
WIDE = {SMALL: 11.8, NORMAL: 10.3, LARGE: 7.2}            # characters per inch, the largest size's bold
CELL, LEFT, GAP = 1.3, 1.62, 0.07                         # inches: a map, what stands left of the maps, between two maps
SCALES = {"similarity": "inner product", "weights": "weight, the\nword's top = 1"}


@dataclass(frozen=True, eq=False)
class Row:
    """A model's name, values (L,P), their kind: "similarity" (inner products, signed), "weights" (eq. 4, a word's sum to 1)."""

    name: str
    values: np.ndarray
    kind: str = "weights"


def explain(
    image: np.ndarray, words: Sequence[str], rows: Sequence[Row], grid: tuple[int, int], *, title: str | None = None,
    objects: Sequence[int] | np.ndarray | None = None, masks: np.ndarray | None = None, pieces: Sequence[int] = (),
    per_block: int = 6,
):
    """The words of a caption over one picture: the region of each, and maps of what models give it.          -> Figure

    image (H,W,3) uint8; words L strings; rows at least one of weights, values (L,P), P = gh*gw.
    objects (L,) int, masks (R,H,W) bool: word l names the region masks[objects[l]], none where objects[l] < 0. Such a word is
    bold and has its region's number in the picture; the region is cut out in the first row and outlined in all others, with
    the share of the word's weight inside. Where no word names a region the first row shows what the last row of weights
    finds: the patches with at least half of the word's top weight.
    title: the first line. Where there are regions, what the rows of weights find stands under it, or first without it.
    pieces: how many tokens each word is, for a note where that is more than one. per_block: words side by side.
    Weights are drawn as shares of the word's largest, a cross where they are 0: a patch that the threshold removed.
    A row of similarities has one signed scale for all words. ValueError: wrong shapes.
    """
    image, words = pictures(image), [clean(w) for w in words]
    L, P = len(words), grid[0] * grid[1]
    for row in rows:
        if L == 0 or np.shape(row.values) != (L, P):
            raise ValueError(f"{row.kind}: expected (L,P) with L={L} >= 1, P={P}, got {np.shape(row.values)}")
    weights = [row for row in rows if row.kind == "weights"]
    if not weights:
        raise ValueError("rows: expected at least one of weights, got none")
    truth = regions(image, objects, masks, L)                     # {word: (H,W) bool}
    inside = {l: patch_cover(mask, grid) for l, mask in truth.items()}
    order = list(dict.fromkeys(objects[l] for l in truth)) if objects is not None else []
    numbers = {l: order.index(objects[l]) + 1 for l in truth} if objects is not None else {}

    blocks = np.array_split(np.arange(L), -(-L // per_block))
    width = LEFT + max(len(blocks[0]), 3) * (CELL + GAP) + 0.03
    lines = ([clean(title)] if title else []) + (finding(weights, inside) if truth else [])
    heads = [(wrapped(line, int(width * WIDE[font])), font)
             for line, font in zip(lines, [LARGE, *[NORMAL] * len(lines)])]
    foot = wrapped(footnote(weights, truth, pieces), int(width * WIDE[SMALL]))
    tall = [font / 72 * 1.25 * (head.count("\n") + 1) + 0.05 for head, font in heads]
    below = [0.27 if truth and kind == "weights" else 0.0 for kind in ("weights", *(row.kind for row in rows))]  # for a line
    starts = np.cumsum([0.0, *[CELL + GAP + more for more in below]])
    above = 0.28 + 0.2 * any("\n" in heading(w) for w in words)
    block_height = above + float(starts[-1])
    end = SMALL / 72 * 1.3 * (foot.count("\n") + 1) + 0.1
    size = (width, 0.08 + sum(tall) + 0.08 + len(blocks) * block_height + end)
    figure = new_figure(size)

    def axes(x, y, w, h):                                         # inches from the top left corner
        return figure.add_axes((x / size[0], 1 - (y + h) / size[1], w / size[0], h / size[1]))

    def text(x, y, words, **style):
        return figure.text(x / size[0], 1 - y / size[1], words, **style)

    def under(x, y, words):
        text(x + CELL / 2, y + CELL + 0.035, words, fontsize=SMALL, ha="center", va="top")

    y = 0.08
    for (head, font), high in zip(heads, tall):
        text(0.08, y, head, fontsize=font, fontweight="bold" if font == LARGE else "normal", va="top", linespacing=1.15)
        y += high
    for b, block in enumerate(blocks):
        y = 0.08 + sum(tall) + 0.08 + b * block_height + above
        ax = axes(0.08, y, CELL, CELL)
        show(ax, image)
        ax.set_title("picture", fontsize=NORMAL, pad=4)
        for l, n in numbers.items():
            number(ax, truth[l], n)
        for c, l in enumerate(block):
            x = LEFT + c * (CELL + GAP)
            ax = axes(x, y, CELL, CELL)
            head = f"{numbers[l]} {heading(words[l])}" if l in truth else heading(words[l])
            ax.set_title(head, fontsize=NORMAL, fontweight="bold" if l in truth else "normal", pad=4, linespacing=1.05)
            if l in truth:
                under(x, y, f"area {share(np.mean(inside[l]))}")
                cut_out(ax, image, truth[l])
            else:
                nothing = np.zeros(image.shape[:2], bool)
                cut_out(ax, image, nothing if truth else found(weights[-1].values[l], grid, image.shape[:2]))
            for r, row in enumerate(rows):
                at = y + float(starts[r + 1])
                ax = axes(x, at, CELL, CELL)
                drawn = heat(ax, row, l, grid, image.shape[:2])
                if l in truth:
                    outline(ax, truth[l])
                    if row.kind == "weights":
                        under(x, at, f"inside {share(held(row.values[l], inside[l]))}")
                if c == 0:
                    text(0.08, at + 0.04, wrapped(clean(label(row, rows)), 12), fontsize=NORMAL, fontweight="bold", va="top")
                    text(0.08, at + CELL - 0.4, SCALES[row.kind], fontsize=SMALL, va="bottom", linespacing=1.05)
                    scale_bar(figure, axes(0.13, at + CELL - 0.36, LEFT - 0.5, 0.13), drawn)
    text(0.08, size[1] - end + 0.02, foot, fontsize=SMALL, va="top", color="#333333", linespacing=1.25)
    return figure


def compare(seen: Mapping[str, "Explained"], stages: Sequence[str] = ("weights",), **options):
    """explain for one picture and caption through several models, by name: a row for each stage of each.        -> Figure"""
    rows = [Row(name, getattr(e, stage), stage) for name, e in seen.items() for stage in stages]
    e = next(iter(seen.values()))
    return explain(e.image, e.words, rows, e.grid, objects=e.objects, masks=e.masks, pieces=e.pieces, **options)


def regions(image, objects, masks, L):
    """{word: its region (H,W) bool}, of the words that name one with a visible pixel."""
    if objects is None or masks is None or not len(masks):
        return {}
    masks = np.asarray(masks, bool)
    if masks.shape[1:] != image.shape[:2] or len(objects) != L:
        raise ValueError(f"objects, masks: expected ({L},) and (R,{image.shape[0]},{image.shape[1]}), "
                         f"got ({len(objects)},) and {masks.shape}")
    return {l: masks[r] for l, r in enumerate(objects) if r >= 0 and masks[r].any()}


def held(weight, inside):
    """The share of a word's weight inside its region; (P,) and the covered fraction of each patch."""
    total = float(np.sum(weight))
    return float(np.sum(weight * inside)) / total if total > 0 else float(np.mean(inside))


def finding(weights, inside):
    """Two sentences, from the numbers that are drawn."""
    names = [clean(row.name) or "this model" for row in weights]
    held_ = [share(np.mean([held(row.values[l], x) for l, x in inside.items()])) for row in weights]
    hits = [sum(x[int(np.argmax(row.values[l]))] > 0.5 for l, x in inside.items()) for row in weights]
    even = share(np.mean([np.mean(x) for x in inside.values()]))
    return [f"{names[0]}: {held_[0]} of a word's weight is in the region it names"
            + "".join(f"; {name}: {x}" for name, x in zip(names[1:], held_[1:])),
            f"Evenly spread it would be {even}. Words whose top patch is in their region: "
            + ", ".join(f"{name} {n} of {len(inside)}" for name, n in zip(names, hits))]


def share(x):
    return f"{100 * x:.0f}\u00a0%"                                # no line break before the %


def footnote(weights, truth, pieces):
    """What the marks mean, of those only that are there."""
    out = ["Pale: not this word. Dark: this word."]
    if truth:
        out.append("Ticks point into the word's own region.")
    else:
        out.append("First row: the patches with at least half of the word's top weight.")
    if any(np.any(np.asarray(row.values) == 0) for row in weights):
        out.append("×: weight 0, removed by the threshold.")
    if max(pieces, default=1) > 1:
        out.append("A word of several pieces: their mean.")
    return " ".join(out)


def label(row, rows):
    """What stands left of a row: its model, with the kind where there are several."""
    return f"{row.name} {row.kind}".strip() if len({other.kind for other in rows}) > 1 else row.name or row.kind


def heading(word):
    """A word as it stands over its column, broken at a hyphen where it is long."""
    word = shortened(word, 22)
    return word.replace("-", "-\n", 1) if len(word) > 10 else word


def show(ax, image):
    H, W = image.shape[:2]
    ax.imshow(image, interpolation="nearest", extent=(0, W, H, 0))
    bare(ax)


def pale():
    """The colour of the lowest value.    -> (3,) uint8"""
    from matplotlib import colormaps

    return np.round(255 * np.asarray(colormaps[HEAT](0.0)[:3])).astype(np.uint8)


def cut_out(ax, image, mask):
    """The picture where the mask is true, pale elsewhere."""
    show(ax, np.where(mask[..., None], image, pale()))


def found(weight, grid, size):
    """Patches with at least half of the top weight, in pixels.       -> (H,W) bool"""
    strong = np.reshape(weight, grid) >= max(np.max(weight) / 2, 1e-300)
    return strong[centre(size[0], grid[0])][:, centre(size[1], grid[1])]


def heat(ax, row, l, grid, size):
    """One word's map: similarities as they are, weights as shares of the word's largest."""
    H, W = size
    x, limits = np.reshape(row.values[l], grid), scale(row.values)
    if row.kind == "weights":
        x, limits = x / max(float(np.max(x)), 1e-300), (0.0, 1.0)
    drawn = ax.imshow(x, cmap=HEAT, vmin=limits[0], vmax=limits[1], interpolation="nearest", extent=(0, W, H, 0))
    bare(ax)
    if row.kind == "weights" and x.size <= 400:
        gone = np.argwhere(x == 0) + 0.5
        ax.plot(gone[:, 1] * W / grid[1], gone[:, 0] * H / grid[0], "x", color="black", markersize=36 / max(grid) ** 1.1,
                markeredgewidth=1.0)                              # 0 is always the palest: a dark cross shows
    return drawn


def outline(ax, mask):
    """The border of a mask, with ticks that point inside; dark with a light edge, to be seen on any ground."""
    from matplotlib.patheffects import Stroke, withTickedStroke

    H, W = mask.shape
    padded = np.pad(mask.astype(float), 1)
    x, y = np.arange(-1, W + 1) + 0.5, np.arange(-1, H + 1) + 0.5
    lines = ax.contour(x, y, padded, levels=[0.5], colors=OUTLINE, linewidths=1.6)
    lines.set(path_effects=[Stroke(linewidth=3.2, foreground="white"), withTickedStroke(angle=-90, length=0.6, spacing=7)])
    ax.set_xlim(0, W)
    ax.set_ylim(H, 0)


def number(ax, mask, n):
    """A number in the middle of a region."""
    spots = np.argwhere(mask) + 0.5
    y, x = spots[np.argmin(np.sum((spots - spots.mean(0)) ** 2, axis=1))]
    ax.text(x, y, str(n), fontsize=SMALL, ha="center", va="center", fontweight="bold",
            bbox={"boxstyle": "circle,pad=0.12", "facecolor": "white", "edgecolor": "black", "linewidth": 0.8})


def scale_bar(figure, ax, drawn):
    """The row's colours with plain numbers: the ends, and 0 or a half between them."""
    low, high = drawn.get_clim()
    middle = 0.5 if (low, high) == (0.0, 1.0) else 0.0
    ticks = [low, *[middle] * (0.25 < (middle - low) / (high - low) < 0.75), high]
    figure.colorbar(drawn, cax=ax, orientation="horizontal")
    ax.set_xticks(ticks, [digits(x) for x in ticks])
    ax.tick_params(labelsize=SMALL, length=2, pad=1)
    ax.spines[:].set(linewidth=0.5)
