"""Sheets of pictures with what a model says of them: classes and confusions, queries and what was found for them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sparc_ref.show.plots import NORMAL, SMALL, bare, clean, new_figure, pictures, shortened, show, wrapped

TILE = 1.45                                               # inches
TEXT = 0.46                                               # below a picture


class Tile(NamedTuple):
    """A picture, the model's words, and below them the truth where it is another one."""

    image: np.ndarray
    said: str
    truth: str = ""


def sheet(title: str, rows: Mapping[str, Sequence[Tile]], *, across: int = 6):
    """Pictures under headings, `across` in a row; those with another truth in a thick frame.      -> Figure"""
    lines = {name: -(-len(tiles) // across) for name, tiles in rows.items()}
    height = 0.45 + sum(0.32 + n * (TILE + TEXT) for n in lines.values())
    figure = new_figure((across * (TILE + 0.1) + 0.1, height))
    figure.text(0.012, 1 - 0.1 / height, clean(title), fontsize=NORMAL + 1, va="top")
    top = 0.45
    for name, tiles in rows.items():
        figure.text(0.012, 1 - top / height, clean(name), fontsize=NORMAL, va="top")
        top += 0.32
        for i, tile in enumerate(tiles):
            at = (0.1 + i % across * (TILE + 0.1), top + i // across * (TILE + TEXT))
            draw_tile(figure, at, tile, TILE)
        top += lines[name] * (TILE + TEXT)
    return figure


def draw_tile(figure, at: tuple[float, float], tile: Tile, side: float) -> None:
    """A picture with its text at so many inches from the left and from the top."""
    width, height = figure.get_size_inches()
    ax = figure.add_axes((at[0] / width, 1 - (at[1] + side) / height, side / width, side / height))
    show(ax, pictures(tile.image))
    for spine in ax.spines.values():
        spine.set(linewidth=2.6 if tile.truth else 0.5, color="#000000" if tile.truth else "#999999")
    text = "\n".join(shortened(clean(line), 24) for line in (tile.said, tile.truth) if line)
    figure.text(at[0] / width, 1 - (at[1] + side + 0.05) / height, text, fontsize=SMALL - 1, va="top", linespacing=1.15)


def confusions(title: str, pairs: Mapping[tuple[int, int], int], classes: Sequence[str], *, most: int = 15):
    """Which class is taken for which: a table of up to `most` classes, the most frequent confusions of more.      -> Figure

    pairs: {(class, taken for): pictures}, right ones among them. The darker a field, the larger its share of the row.
    """
    used = sorted({k for pair in pairs for k in pair})
    if len(used) > most:
        return bars(title, pairs, classes, most)
    counts = np.array([[pairs.get((a, b), 0) for b in used] for a in used], float)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [shortened(clean(classes[k]), 22) for k in used]
    side = 2.4 + 0.42 * len(used)
    figure = new_figure((side + 0.6, side), layout="constrained")
    ax = figure.add_subplot()
    ax.imshow(share, cmap="Greys", vmin=0, vmax=1)
    for (i, j), n in np.ndenumerate(counts):
        ax.text(j, i, f"{n:.0f}", ha="center", va="center", fontsize=SMALL, color="white" if share[i, j] > 0.5 else "black")
    ax.set_xticks(range(len(used)), names, rotation=45, ha="right", fontsize=SMALL)
    ax.set_yticks(range(len(used)), names, fontsize=SMALL)
    ax.set_xlabel("taken for", fontsize=SMALL + 1)
    ax.set_ylabel("is", fontsize=SMALL + 1)
    figure.suptitle(wrapped(clean(title), int(9 * side)), fontsize=NORMAL, x=0.02, ha="left")
    return figure


def bars(title, pairs, classes, most):
    worst = sorted(((n, a, b) for (a, b), n in pairs.items() if a != b), key=lambda x: (-x[0], x[1], x[2]))[:most]
    total: dict[int, int] = {}
    for (a, _), n in pairs.items():
        total[a] = total.get(a, 0) + n
    figure = new_figure((8.2, 0.9 + 0.27 * len(worst)), layout="constrained")
    ax = figure.add_subplot()
    ax.barh(range(len(worst)), [n for n, _, _ in worst], color="#777777", height=0.6)
    ax.set_yticks(range(len(worst)), [f"{shortened(clean(classes[a]), 26)}  taken for  {shortened(clean(classes[b]), 26)}"
                                      for _, a, b in worst], fontsize=SMALL)
    for i, (n, a, _) in enumerate(worst):
        ax.text(n, i, f" {n} of {total[a]}", va="center", fontsize=SMALL)
    ax.invert_yaxis()
    bare_sides(ax)
    ax.set_title(clean(f"{title}: the {len(worst)} most frequent confusions"), fontsize=NORMAL, loc="left")
    return figure


def bare_sides(ax: Any) -> None:
    ax.spines[["top", "right", "bottom"]].set_visible(False)
    ax.set_xticks([])
    ax.margins(x=0.12)


class Found(NamedTuple):
    """A query, a picture or words, and what was found for it, the first one first: (picture or words, right?, similarity)."""

    query: Any
    answers: Sequence[tuple[Any, bool, float]]


def found_for(title: str, rows: Sequence[Found]):
    """A line for each query: it, then what was found; right ones in a thick frame, marked so.      -> Figure"""
    side, gap, words = 1.35, 0.14, 2.3
    answers = max(len(row.answers) for row in rows)
    wide = [side if isinstance(rows[0].query, np.ndarray) else words]
    wide += [side if isinstance(rows[0].answers[0][0], np.ndarray) else words] * answers
    size = (sum(wide) + gap * (answers + 2), 0.75 + len(rows) * (side + 0.34))
    figure = new_figure(size)
    figure.text(gap / size[0], 1 - 0.1 / size[1], clean(title), fontsize=NORMAL + 1, va="top")
    for column, name in enumerate(["asked", *(f"found {i + 1}" for i in range(answers))]):
        figure.text((gap + sum(wide[:column]) + gap * column) / size[0], 1 - 0.45 / size[1], name, fontsize=SMALL, va="top")
    for r, row in enumerate(rows):
        top = 0.68 + r * (side + 0.34)
        for column, (item, right, score) in enumerate([(row.query, False, None), *row.answers]):
            left = gap + sum(wide[:column]) + gap * column
            ax = figure.add_axes((left / size[0], 1 - (top + side) / size[1], wide[column] / size[0], side / size[1]))
            if isinstance(item, np.ndarray):
                show(ax, pictures(item))
            else:
                bare(ax)
                ax.text(0.03, 0.95, wrapped(shortened(clean(item), 150), 29), fontsize=SMALL, va="top", transform=ax.transAxes)
            for spine in ax.spines.values():
                spine.set(linewidth=2.6 if right else 0.5, color="#000000" if right else "#999999")
            if score is not None:
                ax.set_xlabel(f"{score:.2f}{', right' if right else ''}", fontsize=SMALL - 1, labelpad=2)
    return figure
