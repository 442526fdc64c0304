import io

import numpy as np
import pytest

pytest.importorskip("matplotlib")
import matplotlib as mpl

from sparc_ref.show import plots


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def stages(rng, L, P):
    s = rng.normal(size=(L, P))
    m = (s - s.min(1, keepdims=True)) / np.ptp(s, axis=1, keepdims=True)
    w = np.where(m >= 1 / P, m, 0)
    return s, m, w / w.sum(1, keepdims=True)


def heat_maps(figure):
    return [ax.images[0] for ax in figure.axes if ax.images and ax.images[0].get_array().ndim == 2 and ax.get_xlim()[0] < 0]


def texts(figure):
    return [t.get_text() for t in figure.findobj(mpl.text.Text) if t.get_text()]


def opens(figure):
    from PIL import Image

    image = Image.open(io.BytesIO(plots.png(figure, dpi=50)))
    image.load()
    return image


@pytest.mark.parametrize("L, grid, size", [
    (1, (1, 1), (8, 8)), (3, (2, 3), (10, 20)), (9, (4, 4), (16, 16)), (17, (7, 7), (56, 56))])
def test_explain_has_a_map_per_word_and_stage(rng, L, grid, size):
    P = grid[0] * grid[1]
    s, m, w = stages(rng, L, P) if P > 1 else (np.ones((L, 1)),) * 3
    words = [f"w{i}" for i in range(L)]
    image = rng.integers(0, 255, (*size, 3)).astype(np.uint8)
    figure = plots.explain(image, words, s, m, w, grid, title="a title", objects=[0] * L)
    maps = heat_maps(figure)
    assert len(maps) == 3 * L
    assert sum(np.array_equal(im.get_array(), s[0].reshape(grid)) for im in maps) >= 1
    labels = {"similarity\n(signed)", "min-max\n(0 to 1, each word)", "sparse weights\n(sum to 1)"}
    assert {*words, "a title", *labels} <= set(texts(figure))
    first = next(t for t in figure.findobj(mpl.text.Text) if t.get_text() == "w0")
    assert first.get_fontweight() == "bold"
    opens(figure)


def test_explain_scales_and_removed_patches(rng):
    s, m, w = stages(rng, 4, 16)
    figure = plots.explain(np.zeros((8, 8, 3), np.uint8), list("abcd"), s, m, w, (4, 4))
    similar = [im for im in heat_maps(figure) if any(np.array_equal(im.get_array().ravel(), row) for row in s)]
    assert {im.get_clim() for im in similar} == {(s.min(), s.max())}        # one signed scale for all words
    crosses = sum(len(line.get_xdata()) for ax in figure.axes for line in ax.lines if line.get_marker() == "x")
    assert crosses == np.count_nonzero(w == 0) > 0


def test_explain_without_min_max_and_with_flat_rows():
    w = np.full((2, 4), 0.25)
    figure = plots.explain(np.zeros((8, 8, 3), np.uint8), ["a", "b"], np.zeros((2, 4)), None, w, (2, 2))
    assert len(heat_maps(figure)) == 4
    assert not any("min-max" in t for t in texts(figure))
    opens(figure)
    opens(plots.explain(np.zeros((8, 8, 3), np.uint8), ["a"], np.zeros((1, 4)), None, np.zeros((1, 4)), (2, 2)))


def test_outline_follows_the_strong_patches():
    w = np.array([[0.7, 0.1, 0.1, 0.1]])
    figure = plots.explain(np.zeros((4, 4, 3), np.uint8), ["a"], np.zeros((1, 4)), None, w, (2, 2))
    found = [c for ax in figure.axes for c in ax.collections if isinstance(c, mpl.collections.LineCollection)]
    lines = next(c for c in found if c.get_segments())
    assert len(lines.get_segments()) == 4
    assert {tuple(p) for seg in lines.get_segments() for p in seg} == {(-0.5, -0.5), (1.5, -0.5), (-0.5, 1.5), (1.5, 1.5)}


def test_explain_prints_hostile_words_as_they_are():
    w = np.full((3, 4), 0.25)
    words = ["$\\frac{", "a\nb", "x" * 200]
    opens(plots.explain(np.zeros((8, 8, 3), np.uint8), words, w, w, w, (2, 2), title="$\\undefined$ \x00 _^{" * 9))


@pytest.mark.parametrize("change, what", [
    ({"similarity": np.zeros((2, 5))}, r"similarity: expected \(L,P\) with L=2 >= 1, P=4, got \(2, 5\)"),
    ({"weights": np.zeros((3, 4))}, "weights: expected"),
    ({"words": [], "similarity": np.zeros((0, 4)), "weights": np.zeros((0, 4))}, "L=0 >= 1"),
    ({"image": np.zeros((8, 8, 3))}, r"image: expected \(H,W,3\) uint8, got \(8, 8, 3\) float64"),
])
def test_explain_refuses(change, what):
    given = {"image": np.zeros((8, 8, 3), np.uint8), "words": ["a", "b"], "similarity": np.zeros((2, 4)), "minmax": None,
             "weights": np.zeros((2, 4)), "grid": (2, 2)}
    with pytest.raises(ValueError, match=what):
        plots.explain(**(given | change))


def rows(n, **values):
    return [{"step": i + 1, **{k: f(i) for k, f in values.items()}} for i in range(n)]


def test_curves_draw_what_is_there_with_names_at_the_lines():
    one = rows(10, loss_global=lambda i: 1 / (i + 1), pointing=lambda i: i / 10, pointing_chance=lambda i: 0.1)
    series = {"one": [{"step": 0}, *one],
              "two": rows(10, loss_global=lambda i: 2 / (i + 1), miou=lambda i: float("nan"), pointing=lambda i: None)}
    figure = plots.curves(series)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["Global loss on training batches",
                                                               "Localisation: a name's top patch is on its object"]
    first, second = figure.axes
    assert [line.get_label() for line in first.lines] == ["one", "two"]
    assert len({line.get_linestyle() for line in first.lines}) == len({line.get_marker() for line in first.lines}) == 2
    assert np.allclose(first.lines[1].get_ydata(), [2 / (i + 1) for i in range(10)])
    assert [t.get_text() for t in second.texts] == ["chance", "one"]
    opens(figure)


def test_curves_means_of_blocks_and_first_split():
    long = plots.curves({"one": rows(1000, loss_global=lambda i: float(i % 2))})
    assert np.allclose(long.axes[0].lines[0].get_ydata()[:-1], 0.5, atol=0.04)
    assert "means of blocks" in long.axes[0].get_title(loc="left")
    both = [{"step": i, "split": split, "t2i_r1": x} for i in range(3) for split, x in (("validation", 0.5), ("unseen", 0.1))]
    assert plots.curves({"one": both}).axes[0].lines[0].get_ydata().tolist() == [0.5] * 3


def test_names_at_the_lines_do_not_overlap():
    series = {f"model {i}": rows(3, loss_global=lambda i: 1.0) for i in range(6)}
    ax = plots.curves(series).axes[0]
    at = sorted(t.get_position()[1] for t in ax.texts)
    assert len(at) == 6 and min(np.diff(at)) > 0.09


@pytest.mark.parametrize("series", [{}, {"one": []}, {"one": [{"step": 1}]}, {"one": [{"loss_global": 1.0}]}])
def test_curves_without_anything(series):
    with pytest.raises(ValueError, match="expected rows with a step"):
        plots.curves(series)


def test_masks(rng):
    images = [rng.integers(0, 255, (16, 16, 3)).astype(np.uint8) for _ in range(3)]
    truths = [np.full((16, 16), -1) for _ in range(3)]
    truths[0][2:6, 2:6] = 7
    truths[1][2:6, 2:6], truths[1][8:, 8:] = 0, 3
    wild = [rng.integers(0, 9, (16, 16)) for _ in range(3)]
    classes = [f"class <{k}>" for k in range(9)]
    figure = plots.masks(images, truths, {"a": truths, "b": wild}, classes, title="t")
    assert len(figure.axes) == 12
    assert {"picture", "true", "a", "b", "t"} <= set(texts(figure))
    legend = [t for t in texts(figure) if "class <" in t]
    assert legend[0].startswith("1 class <7>\nnot in the picture:") and legend[1].startswith("1 class <0>\n2 class <3>\nnot")
    assert "grey: 3 more classes" in legend[0]
    opens(figure)
    opens(plots.masks(images[:1], [np.full((16, 16), -1)], {}, classes))
    with pytest.raises(ValueError, match=r"3 >= 1, got 3 and \[2\]"):
        plots.masks(images, truths, {"a": truths[:2]}, classes)


def test_global_state_is_left_alone(rng):
    import sys

    before, backend = dict(mpl.rcParams), dict.__getitem__(mpl.rcParams, "backend")
    had_pyplot = "matplotlib.pyplot" in sys.modules
    s, m, w = stages(rng, 2, 4)
    opens(plots.explain(np.zeros((8, 8, 3), np.uint8), ["a", "b"], s, m, w, (2, 2)))
    opens(plots.curves({"one": rows(3, loss_global=float)}))
    opens(plots.masks([np.zeros((8, 8, 3), np.uint8)], [np.zeros((8, 8), int)], {}, ["k"]))
    assert dict.__getitem__(mpl.rcParams, "backend") == backend
    assert {k: v for k, v in mpl.rcParams.items() if k != "backend"} == {k: v for k, v in before.items() if k != "backend"}
    assert had_pyplot or "matplotlib.pyplot" not in sys.modules


def test_the_same_figure_gives_the_same_bytes(rng):
    s, m, w = stages(rng, 2, 4)
    a, b = (plots.png(plots.explain(np.zeros((8, 8, 3), np.uint8), ["a", "b"], s, m, w, (2, 2))) for _ in range(2))
    assert a == b
