"""What each word looks at, drawn: every map, mark, number and sentence of the figure."""

import io
import re

import numpy as np
import pytest

pytest.importorskip("matplotlib")
import matplotlib as mpl

from sparc_ref.run.examples import Explained
from sparc_ref.show import maps
from sparc_ref.show.plots import new_figure, png


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def stages(rng, L, P):
    s = rng.normal(size=(L, P))
    m = (s - s.min(1, keepdims=True)) / np.ptp(s, axis=1, keepdims=True)
    w = np.where(m >= 1 / P, m, 0)
    return s, w / w.sum(1, keepdims=True)


def both(s, w, name=""):
    return [maps.Row(name, s, "similarity"), maps.Row(name, w)]


def texts(figure):
    return [t.get_text().replace("\xa0", " ") for t in figure.findobj(mpl.text.Text) if t.get_text()]


def columns(figure, L):
    """The axes of every word from the top, the first row included; the picture's and the scales' left out."""
    own = [ax for ax in figure.axes if ax.images and ax.get_position().x0 * figure.get_figwidth() > maps.LEFT - 0.01]
    at = sorted({round(ax.get_position().x0, 4) for ax in own})
    blocks = sorted({round(-ax.get_position().y0, 4) for ax in own})
    rows = [[ax for x in at for ax in own if (round(-ax.get_position().y0, 4), round(ax.get_position().x0, 4)) == (y, x)]
            for y in blocks]
    assert sum(map(len, rows)) % L == 0
    return rows


def opens(figure):
    from PIL import Image

    image = Image.open(io.BytesIO(png(figure, dpi=50)))
    image.load()
    return image


def case(rng):
    """Three words over 2 x 3 patches of 4 pixels: the third names no region, the second the picture's right half."""
    s, w = stages(rng, 3, 6)
    masks = np.zeros((2, 8, 12), bool)
    masks[0, :, 6:] = True
    masks[1, :4, :4] = True
    return rng.integers(0, 256, (8, 12, 3), np.uint8), s, w, masks, [1, 0, -1]


@pytest.mark.parametrize("L, grid, size", [
    (1, (1, 1), (8, 8)), (3, (2, 3), (10, 20)), (9, (4, 4), (16, 16)), (17, (7, 7), (56, 56))])
def test_a_map_per_word_and_row(rng, L, grid, size):
    P = grid[0] * grid[1]
    s, w = stages(rng, L, P) if P > 1 else (np.ones((L, 1)),) * 2
    words = [f"w{i}" for i in range(L)]
    image = rng.integers(0, 255, (*size, 3)).astype(np.uint8)
    figure = maps.explain(image, words, both(s, w), grid, title="a title")
    drawn = columns(figure, L)
    assert sum(map(len, drawn)) == 3 * L, "a first row, similarities, weights"
    assert [ax.get_title() for row in drawn[::3] for ax in row] == words
    similar = [ax.images[0].get_array() for row in drawn[1::3] for ax in row]
    weights = [ax.images[0].get_array() for row in drawn[2::3] for ax in row]
    for l in range(L):
        assert np.array_equal(similar[l], s[l].reshape(grid))
        assert np.allclose(weights[l], (w[l] / w[l].max()).reshape(grid))
    assert {"a title", "similarity", "weights", "inner product"} <= set(texts(figure))
    if L < 4:
        opens(figure)


def test_scales_are_plain_numbers_and_say_what_they_are(rng):
    s, w = stages(rng, 4, 16)
    figure = maps.explain(np.zeros((8, 8, 3), np.uint8), list("abcd"), both(40 * s, w), (4, 4))
    _, similar, weights = columns(figure, 4)
    assert {ax.images[0].get_clim() for ax in similar} == {(40 * s.min(), 40 * s.max())}, "one signed scale for all words"
    assert {ax.images[0].get_clim() for ax in weights} == {(0.0, 1.0)}
    bars = [ax for ax in figure.axes if ax.get_position().height < similar[0].get_position().height / 4]
    ends = [[t.get_text() for t in bar.get_xticklabels()] for bar in sorted(bars, key=lambda ax: -ax.get_position().y0)]
    assert ends == [[f"{40 * s.min():.2g}", "0", f"{40 * s.max():.2g}"], ["0", "0.5", "1"]]
    assert all("e" not in text for row in ends for text in row)
    assert "inner product" in texts(figure) and any("top = 1" in text for text in texts(figure))


def test_crosses_are_on_what_the_threshold_removed_and_nowhere_else(rng):
    s, w = stages(rng, 4, 16)
    figure = maps.explain(np.zeros((8, 8, 3), np.uint8), list("abcd"), both(s, w), (4, 4))
    first, similar, weights = columns(figure, 4)
    assert not [line for ax in (*first, *similar) for line in ax.lines]
    for ax, row in zip(weights, w, strict=True):
        crosses = sorted(tuple(at) for line in ax.lines for at in line.get_xydata().tolist() if line.get_marker() == "x")
        removed = np.argwhere(row.reshape(4, 4) == 0)
        assert crosses == sorted((2 * c + 1, 2 * r + 1) for r, c in removed.tolist())
    assert np.count_nonzero(w == 0) > 0 and any("removed by the threshold" in text for text in texts(figure))
    kept = maps.explain(np.zeros((8, 8, 3), np.uint8), ["a"], [maps.Row("", np.full((1, 16), 1 / 16))], (4, 4))
    assert not any("removed" in text for text in texts(kept)), "a mark that is not there is not explained"


def test_crosses_stand_in_the_middle_of_their_patches_on_any_grid(rng):
    image, _, w, *_ = case(rng)
    figure = maps.explain(image, ["a", "b", "c"], [maps.Row("", w)], (2, 3))
    _, drawn = columns(figure, 3)
    for ax, row in zip(drawn, w, strict=True):
        (crosses,) = [line.get_xydata().tolist() for line in ax.lines]
        assert sorted(crosses) == sorted([4 * c + 2, 4 * r + 2] for r, c in np.argwhere(row.reshape(2, 3) == 0).tolist())


def test_under_each_map_stands_its_own_share_and_its_rows_own_unit(rng):
    """Two models with similarities between them: a line under each map of weights, none under the others; words in blocks."""
    image, s, _, masks, objects = case(rng)
    one, two = (np.random.default_rng(seed).random((3, 6)) for seed in (1, 2))
    rows = [maps.Row("one", one), maps.Row("one", s, "similarity"), maps.Row("two", two)]
    figure = maps.explain(image, ["up", "right", "and"], rows, (2, 3), objects=objects, masks=masks, per_block=2)
    cover = np.array([[1, 0, 0, 0, 0, 0], [0, 0.5, 1, 0, 0.5, 1]])
    wanted = {f"inside {100 * w[l] @ cover[l] / w[l].sum():.0f} %" for w in (one, two) for l in (0, 1)}
    shares = [t for t in figure.texts if t.get_text().startswith("inside")]
    assert {t.get_text().replace("\xa0", " ") for t in shares} == wanted and len(wanted) == len(shares) == 4
    drawn = [ax for ax in figure.axes if ax.images and ax.images[0].get_array().shape == (2, 3)]
    for w in (one, two):
        for l in (0, 1):
            (ax,) = [ax for ax in drawn if np.allclose(np.ravel(ax.images[0].get_array()), w[l] / w[l].max())]
            box = ax.get_position()
            below = [t for t in shares if box.x0 < t.get_position()[0] < box.x1 and t.get_position()[1] < box.y0]
            nearest = max(below, key=lambda t: t.get_position()[1])
            assert nearest.get_text().replace("\xa0", " ") == f"inside {100 * w[l] @ cover[l] / w[l].sum():.0f} %"
    (third,) = [ax for ax in drawn if np.allclose(np.ravel(ax.images[0].get_array()), two[2] / two[2].max())]
    names = sorted((-t.get_position()[1], t.get_text().replace("\n", " ")) for t in figure.texts
                   if re.match("inner|weight,|one |two ", t.get_text().replace("\n", " ")))
    assert [text for _, text in names] == ["one weights", "weight, the word's top = 1", "one similarity", "inner product",
                                           "two weights", "weight, the word's top = 1"] * 2, "in each block"
    assert third.get_position().y1 < min(ax.get_position().y0 for ax in figure.axes if ax.get_title() == "1 up")
    bars = [ax for ax in figure.axes if ax.get_position().height < third.get_position().height / 4]
    assert len(bars) == 6


def lightness(colour):
    """CIE L* of an sRGB colour in 0..1."""
    linear = np.where(np.asarray(colour) <= 0.04045, np.asarray(colour) / 12.92, ((np.asarray(colour) + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return 116 * np.cbrt(y) - 16


def test_dark_is_high_in_every_row_and_marks_show_on_their_ground():
    """In grey too: lightness falls all along the scale; crosses, which stand on the palest, and outlines with their edge."""
    colours = mpl.colormaps[maps.HEAT](np.linspace(0, 1, 33))[:, :3]
    light = lightness(colours)
    assert np.all(np.diff(light) < -0.5) and light[0] - light[-1] > 60
    assert light[0] - lightness([0.0, 0.0, 0.0]) > 60
    outline = lightness(mpl.colors.to_rgb(maps.OUTLINE))
    assert np.all(np.maximum(abs(light - outline), abs(light - 100)) > 20), "the line or its white edge"


def test_a_words_region_is_cut_out_numbered_outlined_and_measured(rng):
    image, s, w, masks, objects = case(rng)
    figure = maps.explain(image, ["up", "right", "and"], both(s, w, "mine"), (2, 3), objects=objects, masks=masks)
    first, similar, weights = columns(figure, 3)
    assert [ax.get_title() for ax in first] == ["1 up", "2 right", "and"]
    assert [ax.title.get_fontweight() for ax in first] == ["bold", "bold", "normal"]
    pale = np.round(255 * np.asarray(mpl.colormaps[maps.HEAT](0.0)[:3]))
    for ax, mask in zip(first, (masks[1], masks[0], np.zeros((8, 12), bool)), strict=True):
        assert np.array_equal(ax.images[0].get_array(), np.where(mask[..., None], image, pale))
    (whole,) = [ax for ax in figure.axes if ax.get_title() == "picture"]
    assert np.array_equal(whole.images[0].get_array(), image)
    for number, mask in (("1", masks[1]), ("2", masks[0])):
        (text,) = [t for t in whole.texts if t.get_text() == number]
        assert mask[int(text.get_position()[1]), int(text.get_position()[0])], "the number is inside its region"
    cover = np.array([[1, 0, 0, 0, 0, 0], [0, 0.5, 1, 0, 0.5, 1]])                # of each patch, by hand
    for row in (similar, weights):
        assert [bool(ax.collections) for ax in row] == [True, True, False]
    low, high = (np.concatenate([path.vertices for path in weights[1].collections[0].get_paths()]) for _ in (0, 1))
    assert low.min(0) == pytest.approx([6, 0], abs=0.51) and high.max(0) == pytest.approx([12, 8], abs=0.51)
    shown = texts(figure)
    assert [t for t in shown if t.startswith("area")] == ["area 17 %", "area 50 %"]
    inside = [float(w[l] @ cover[l]) for l in (0, 1)]
    assert [t for t in shown if t.startswith("inside")] == [f"inside {100 * x:.0f} %" for x in inside]


def test_ticks_point_inside():
    """The outline alone, of a block in the middle, drawn in black on white: more ink inside the border than outside."""
    from PIL import Image

    figure = new_figure((2, 2))
    ax = figure.add_axes((0, 0, 1, 1))
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    maps.outline(ax, mask)
    ax.set_axis_off()
    grey = np.asarray(Image.open(io.BytesIO(png(figure, dpi=100))).convert("L"), float)      # 200 x 200, 10 pixels each
    ring = np.maximum(abs(np.arange(200) - 99.5)[:, None], abs(np.arange(200) - 99.5))       # from the middle; border at 50
    inner, outer = (255 - grey[(ring > a) & (ring < b)] for a, b in ((40, 47), (53, 60)))
    assert inner.mean() > 10 * outer.mean() and inner.mean() > 3


def test_the_title_is_the_finding_of_what_is_drawn(rng):
    """Two models, known weights: shares of weight inside, top patches that hit, an even spread."""
    image, _, _, masks, objects = case(rng)
    good, bad = np.full((3, 6), 0.1), np.full((3, 6), 0.1)
    good[0, 0] = good[1, 5] = bad[0, 0] = bad[1, 0] = 0.5
    rows, words = [maps.Row("good", good), maps.Row("bad", bad)], ["up", "right", "and"]
    more = {"objects": objects, "masks": masks}
    figure = maps.explain(image, words, rows, (2, 3), **more)
    head = " ".join(texts(figure)).replace("\n", " ")
    assert "good: 60 % of a word's weight is in the region it names; bad: 40 %" in head     # (50 + 70) / 2, (50 + 30) / 2
    assert "Evenly spread it would be 33 %." in head                                        # (1/6 + 1/2) / 2
    assert "Words whose top patch is in their region: good 2 of 2, bad 1 of 2" in head
    (first,) = [t for t in figure.texts if "good: 60" in t.get_text().replace("\xa0", " ")]
    assert first.get_fontweight() == "bold" and first.get_fontsize() == maps.LARGE
    named = maps.explain(image, words, rows, (2, 3), title="T", **more)
    assert [t.get_text() for t in named.texts if t.get_fontsize() == maps.LARGE] == ["T"]
    assert "good: 60 %" in " ".join(texts(named))
    half = np.full((3, 6), 0.1)                                   # the right half covers half of the patches in the middle
    half[0, 0] = half[1, 4] = 0.5
    near = maps.explain(image, words, [maps.Row("half", half)], (2, 3), **more)
    assert "in their region: half 1 of 2" in " ".join(texts(near)).replace("\n", " "), "half of a patch is not in it"
    alone = maps.explain(image, words, rows, (2, 3), title="T")
    assert not any("of a word's weight" in text or "Ticks" in text for text in texts(alone)), "nothing was measured"


def test_without_regions_the_first_row_is_what_the_weights_find():
    """At least half of the top weight, whatever came before the weights."""
    w = np.array([[0.4, 0.1, 0.1, 0.1, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25, 0, 0]])
    image = np.full((4, 6, 3), 7, np.uint8)
    other = maps.Row("before", np.full((2, 6), 1 / 6))
    figure = maps.explain(image, ["a", "b"], [other, *both(-w, w)], (2, 3), objects=[-1, -1])
    first, *_ = columns(figure, 2)
    for ax, found in zip(first, ([1, 0, 0, 0, 1, 0], [1, 1, 1, 1, 0, 0]), strict=True):
        kept = np.kron(np.reshape(found, (2, 3)), np.ones((2, 2))).astype(bool)
        assert np.array_equal((ax.images[0].get_array() == 7).all(-1), kept)
        assert ax.title.get_fontweight() == "normal", "bold is for what is measured"
    assert any("at least half of the word's top weight" in text.replace("\n", " ") for text in texts(figure))


def test_flat_and_empty_rows():
    nothing = maps.explain(np.zeros((8, 8, 3), np.uint8), ["a"], both(np.zeros((1, 4)), np.zeros((1, 4))), (2, 2))
    assert np.array_equal(columns(nothing, 1)[2][0].images[0].get_array(), np.zeros((2, 2)))
    opens(nothing)


def test_hostile_words_are_printed_as_they_are():
    w = np.full((3, 4), 0.25)
    words = ["$\\frac{", "a\nb", "x" * 200]
    opens(maps.explain(np.zeros((8, 8, 3), np.uint8), words, both(w, w, "$_{"), (2, 2), title="$\\undefined$ \x00 _^{" * 9,
                       objects=[0, -1, -1], masks=np.ones((1, 8, 8), bool)))


def test_pieces_are_noted_where_there_are_several(rng):
    s, w = stages(rng, 2, 4)
    for pieces, noted in (((1, 1), False), ((1, 3), True)):
        figure = maps.explain(np.zeros((8, 8, 3), np.uint8), ["a", "b"], both(s, w), (2, 2), pieces=pieces)
        assert any("their mean" in text.replace("\n", " ") for text in texts(figure)) == noted


@pytest.mark.parametrize("change, what", [
    ({"rows": [maps.Row("", np.zeros((2, 5)))]}, r"weights: expected \(L,P\) with L=2 >= 1, P=4, got \(2, 5\)"),
    ({"rows": [maps.Row("", np.zeros((3, 4)), "similarity")]}, "similarity: expected"),
    ({"words": [], "rows": [maps.Row("", np.zeros((0, 4)))]}, "L=0 >= 1"),
    ({"rows": [maps.Row("", np.zeros((2, 4)), "similarity")]}, "at least one of weights"), ({"rows": []}, "at least one"),
    ({"image": np.zeros((8, 8, 3))}, r"image: expected \(H,W,3\) uint8, got \(8, 8, 3\) float64"),
    ({"objects": [0, 0], "masks": np.ones((1, 4, 8), bool)}, r"objects, masks: expected \(2,\) and \(R,8,8\), got \(2,\) and"),
    ({"objects": [0], "masks": np.ones((1, 8, 8), bool)}, r"got \(1,\) and"),
])
def test_wrong_shapes_are_refused(change, what):
    given = {"image": np.zeros((8, 8, 3), np.uint8), "words": ["a", "b"], "rows": [maps.Row("", np.zeros((2, 4)))],
             "grid": (2, 2)}
    with pytest.raises(ValueError, match=what):
        maps.explain(**(given | change))


def test_models_are_compared_in_their_order_with_their_own_maps(rng):
    image, *_, masks, objects = case(rng)
    seen = {}
    for name in ("one", "two"):
        s, w = stages(rng, 3, 6)
        seen[name] = Explained(image, "up right and", ("up", "right", "and"), s, None, None, w, (2, 3), np.array(objects),
                               masks=masks, pieces=(1, 2, 1))
    figure = maps.compare(seen, ("similarity", "weights"))
    assert any("several pieces: their mean" in text.replace("\n", " ") for text in texts(figure))
    _, *drawn = columns(figure, 3)
    wanted = [(e, kind) for e in seen.values() for kind in ("similarity", "weights")]
    for row, (e, kind) in zip(drawn, wanted, strict=True):
        for l, ax in enumerate(row):
            x = getattr(e, kind)[l].reshape(2, 3)
            np.testing.assert_allclose(ax.images[0].get_array(), x if kind == "similarity" else x / x.max())
    labels = [t.get_text().replace("\n", " ") for t in figure.texts if re.match("one|two", t.get_text())]
    assert labels[-4:] == ["one similarity", "one weights", "two similarity", "two weights"]
    lean = maps.compare(seen)
    assert len(columns(lean, 3)) == 3
    assert [t.get_text() for t in lean.texts if t.get_text() in ("one", "two")] == ["one", "two"], "rows of one kind"


def test_the_same_figure_gives_the_same_bytes_and_leaves_global_state_alone(rng):
    before = {k: v for k, v in mpl.rcParams.items() if k != "backend"}
    image, s, w, masks, objects = case(rng)
    a, b = (png(maps.explain(image, ["a", "b", "c"], both(s, w), (2, 3), objects=objects, masks=masks)) for _ in range(2))
    assert a == b and {k: v for k, v in mpl.rcParams.items() if k != "backend"} == before
