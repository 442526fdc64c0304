"""Sheets of pictures: every tile, cell, bar and answer in its place, with its own words, frame and number."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from sparc_ref.show.sheets import Found, Tile, confusions, found_for, sheet

CLASSES = ("ant", "bee", "cat", "dog")


def picture(n):
    return np.full((4, 4, 3), 7 * n, np.uint8)


def by_place(axes):
    """From the top left, row by row."""
    return sorted(axes, key=lambda ax: (round(-ax.get_position().y1, 3), ax.get_position().x0))


def shown(ax):
    """Which picture is drawn there."""
    return int(ax.images[0].get_array()[0, 0, 0]) // 7


def thick(ax):
    return {spine.get_linewidth() > 2 for spine in ax.spines.values()}


def below(figure, ax):
    """The text under an axes, from the left edge on."""
    box = ax.get_position()
    texts = [t for t in figure.texts if abs(t.get_position()[0] - box.x0) < 1e-6 and t.get_position()[1] < box.y0]
    return max(texts, key=lambda t: t.get_position()[1]).get_text()


def test_tiles_stand_in_rows_under_their_headings_with_their_own_words():
    right = [Tile(picture(n), f"said {n}") for n in range(5)]
    wrong = [Tile(picture(n), f"said {n}", f"is: {n}") for n in range(5, 7)]
    figure = sheet("the title", {"Right: 5": right, "Wrong: 2": wrong}, across=3)
    axes = by_place(figure.axes)
    assert [shown(ax) for ax in axes] == list(range(7))
    lines = [{round(ax.get_position().y1, 3) for ax in axes[a:b]} for a, b in ((0, 3), (3, 5), (5, 7))]
    assert [len(line) for line in lines] == [1, 1, 1] and len(set().union(*lines)) == 3
    for n, (ax, tile) in enumerate(zip(axes, [*right, *wrong], strict=True)):
        assert below(figure, ax) == "\n".join(filter(None, [f"said {n}", tile.truth])) and thick(ax) == {bool(tile.truth)}
    at = {t.get_text(): t.get_position()[1] for t in figure.texts}
    tops = [ax.get_position().y1 for ax in axes]
    assert at["the title"] > at["Right: 5"] > tops[0] and tops[3] > at["Wrong: 2"] > tops[5]


PAIRS = {(0, 0): 3, (0, 1): 6, (1, 0): 1, (1, 1): 4, (3, 1): 5}


def test_every_cell_of_the_confusions():
    (ax,) = confusions("title", PAIRS, CLASSES).axes
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("is", "taken for")
    names = ["ant", "bee", "dog"]
    assert [t.get_text() for t in ax.get_xticklabels()] == [t.get_text() for t in ax.get_yticklabels()] == names
    cells = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in ax.texts}
    for i, j in np.ndindex(3, 3):
        a, b = CLASSES.index(names[i]), CLASSES.index(names[j])
        total = sum(n for (k, _), n in PAIRS.items() if k == a)
        assert cells[i, j] == str(PAIRS.get((a, b), 0)) and ax.images[0].get_array()[i, j] == PAIRS.get((a, b), 0) / total


def test_every_bar_of_the_most_frequent_confusions():
    (ax,) = confusions("title", PAIRS | {(0, 0): 30, (2, 2): 9}, CLASSES, most=2).axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["ant  taken for  bee", "dog  taken for  bee"]
    said = [t.get_text() for t in ax.texts]
    assert [bar.get_width() for bar in ax.patches] == [6, 5] and said == [" 6 of 36", " 5 of 5"], "what is right is none"
    assert "the 2 most frequent" in ax.get_title(loc="left") and ax.yaxis_inverted()


@pytest.mark.parametrize("words", [False, True], ids=["pictures ask", "words ask"])
def test_every_answer_stands_in_its_column_with_its_number(words):
    def item(n, of_words):
        return f"words {n}" if of_words else picture(n)

    def answer(r, k):
        return item(10 * r + k, not words), (r + k) % 2 == 0, 0.9 - k / 10 - r / 100

    rows = [Found(item(10 * r, words), [answer(r, k) for k in (1, 2, 3)]) for r in (0, 1)]
    figure = found_for("title", rows)
    heads = sorted((t.get_position()[0], t.get_text()) for t in figure.texts if t.get_text() != "title")
    assert [text for _, text in heads] == ["asked", "found 1", "found 2", "found 3"]
    axes = by_place(figure.axes)
    assert len(axes) == 8
    for n, ax in enumerate(axes):
        r, k = divmod(n, 4)
        assert ax.get_position().x0 == pytest.approx(heads[k][0])
        if words == (k == 0):
            assert [t.get_text() for t in ax.texts] == [f"words {10 * r + k}"]
        else:
            assert shown(ax) == 10 * r + k
        right = k > 0 and (r + k) % 2 == 0
        assert thick(ax) == {right}
        assert ax.get_xlabel() == (f"{0.9 - k / 10 - r / 100:.2f}" + ", right" * right if k else "")
