import io

import numpy as np
import pytest

pytest.importorskip("matplotlib")
import matplotlib as mpl

from sparc_ref.show import plots


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def texts(figure):
    return [t.get_text() for t in figure.findobj(mpl.text.Text) if t.get_text()]


def opens(figure):
    from PIL import Image

    image = Image.open(io.BytesIO(plots.png(figure, dpi=50)))
    image.load()
    return image


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
    many = np.repeat(np.arange(16), 16).reshape(16, 16)           # more true classes than are numbered otherwise
    crowded = plots.masks(images[:1], [many], {"a": [many]}, [f"class {k}" for k in range(20)])
    crowded.canvas.draw()
    assert len(crowded.texts[-1].get_text().splitlines()) == 16
    assert all(text.get_window_extent().y0 >= 0 for text in crowded.texts)
    with pytest.raises(ValueError, match=r"3 >= 1, got 3 and \[2\]"):
        plots.masks(images, truths, {"a": truths[:2]}, classes)


def test_global_state_is_left_alone():
    import sys

    before, backend = dict(mpl.rcParams), dict.__getitem__(mpl.rcParams, "backend")
    had_pyplot = "matplotlib.pyplot" in sys.modules
    opens(plots.curves({"one": rows(3, loss_global=float)}))
    opens(plots.masks([np.zeros((8, 8, 3), np.uint8)], [np.zeros((8, 8), int)], {}, ["k"]))
    assert dict.__getitem__(mpl.rcParams, "backend") == backend
    assert {k: v for k, v in mpl.rcParams.items() if k != "backend"} == {k: v for k, v in before.items() if k != "backend"}
    assert had_pyplot or "matplotlib.pyplot" not in sys.modules


def test_the_same_figure_gives_the_same_bytes():
    a, b = (plots.png(plots.curves({"one": rows(3, loss_global=float)})) for _ in range(2))
    assert a == b
