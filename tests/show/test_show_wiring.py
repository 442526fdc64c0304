"""Every number, map, mask and setting stands under its own label: runs whose numbers all differ, and each cell looked at."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from pages import Tables, figures_asked_for, numbers_in, unit, written, written_spread

from sparc_ref.run.examples import Explained
from sparc_ref.show import plots
from sparc_ref.show.explain import table as words_table
from sparc_ref.show.report import DemoReport, Run, page, print_results, results_table
from sparc_ref.show.results import NUMBERS, OTHERS, Number, findings, numbers_table

NAMES = ("one", "two")
# what a label has to say for a key; "…" continues the row above it
LABELS = {
    "t2i_r1": "caption finds its picture.*R@1", "t2i_r5": "….*R@5", "t2i_r10": "….*R@10",
    "i2t_r1": "picture finds a caption.*R@1", "i2t_r5": "….*R@5", "i2t_r10": "….*R@10",
    "pointing": "pointing|top patch", "mass": "share of a name's weight", "iou": r"region of a name.*\(IoU\)",
    "choice": "picks its object", "miou": "mean IoU, bare class names", "miou_foreground": "….*object pixels",
    "miou_caption": "mean IoU, names as in captions", "miou_caption_foreground": "….*object pixels",
    "grounding_gap": "grounding gap", "fine_loss": "fine-grained loss, true pictures", "seconds": "training time",
}  # fmt: skip
GROUPS = {"Retrieval": ("t2i_r1", "t2i_r5", "t2i_r10", "i2t_r1", "i2t_r5", "i2t_r10"),
          "Localisation": ("pointing", "mass", "iou", "choice"), "Cost": ("seconds",),
          "Grounding": ("grounding_gap", "fine_loss"),
          "Segmentation": ("miou", "miou_foreground", "miou_caption", "miou_caption_foreground")}  # fmt: skip
SAID = {"t2i_r1": "captions finding pictures", "i2t_r1": "pictures finding captions", "pointing": "pointing",
        "mass": "weight on the object", "iou": "the region's IoU", "choice": "picking the object", "miou": "segmentation",
        "grounding_gap": "the grounding gap"}  # fmt: skip
PANELS = {"Global loss": ("loss_global", None), "Fine-grained loss": ("loss_fine", None),
          "Retrieval: caption finds": ("t2i_r1", "t2i_r1_chance"), "a name's top patch": ("pointing", "pointing_chance"),
          "picks its object": ("choice", "choice_chance"), "segmentation": ("miou", "miou_chance"),
          "Grounding gap": ("grounding_gap", 0.0)}  # fmt: skip


def value(key, run):
    """A number of its own for every key and run; far above its chance."""
    return 0.3 + 0.023 * list(LABELS).index(key) + 0.011 * run + (7 * run + 40 if key == "seconds" else 0)


def chance(key, run):
    return 0.01 * (list(LABELS).index(key) + 1) + 0.002 * run


def spread(key, run):
    return value(key, run) + 0.005, 0.001 * (list(LABELS).index(key) + 2) + 0.02 * run, 3 + run


def written_chance(key):
    return {"grounding_gap": "0.000 nats", "seconds": "", "fine_loss": ""}.get(
        key, written(key, (chance(key, 0) + chance(key, 1)) / 2))


def explained(run, i):
    """An example whose arrays are its own; the grid is not square."""
    rng = np.random.default_rng(10 * run + i)
    s, m, w = (rng.random((3, 6)) for _ in range(3))
    w[0, 1] = w[1, 3] = w[1, 5] = 0
    image = np.random.default_rng(100 + i).integers(0, 256, (8, 12, 3), np.uint8)  # every run sees the same one
    truth = np.full((8, 12), -1)
    truth[2:6, 1 + i:5 + i] = 1
    return Explained(image, f"caption {i}", ("a", "red", f"box{i}"), s - 0.5, m, w, w,
                     (2, 3), np.array([-1, 0, 0]), str(i), rng.integers(0, 3, (8, 12)), truth, ("k0", "k1", "k2"),
                     (1, 1, 1), (truth == 1)[None])


def report():
    runs = []
    for r, name in enumerate(NAMES):
        final = {key: value(key, r) for key in LABELS} | {"images": 50.0, "captions": 70.0}
        final |= {f"{key}_chance": chance(key, r) for key in LABELS if key not in ("seconds", "fine_loss", "grounding_gap")}
        metrics = [{"step": s, **{key: value_over_time(key, r, s) for key, _ in PANELS.values()}} for s in range(4)]
        runs.append(Run(name, {"lambda_f": r + 0.25, "width": 64}, metrics, final, {key: spread(key, r) for key in LABELS},
                        (explained(r, 0), explained(r, 1)), {"metrics": f"{name}/m.jsonl", "checkpoint": f"{name}/c"}))
    return DemoReport("title", runs, {"name": "trained-on", "count": 11}, {"name": "tested-on", "count": 22},
                      {"python": "3.99"}, ("command",), (), scenes=2, shown=("why this one", "why that one"))


def value_over_time(key, run, step):
    return 1.0 + [k for k, _ in PANELS.values()].index(key) + 0.1 * run + 0.01 * step


@pytest.fixture(scope="module")
def drawn():
    """The page, and what its figures were asked to draw."""
    with figures_asked_for() as calls:
        text = page(report())
    return text, Tables(text).tables, calls


def test_labels_say_what_their_keys_are():
    keys = [n.key for n in NUMBERS]
    assert keys[-1] == "seconds" and set(keys) == set(LABELS)
    for n in NUMBERS:
        assert re.search(LABELS[n.key], n.label), (n.key, n.label)
        assert n.kind == unit(n.key) and n.better == {"fine_loss": "lower", "seconds": None}.get(n.key, "higher")
    assert {group: tuple(n.key for n in NUMBERS if n.group == group) for group in GROUPS} == GROUPS
    for key in keys:                                              # "…" needs its own row above it
        for end in ("_r5", "_r10", "_foreground"):
            if key.endswith(end):
                above = [k for k in keys[:keys.index(key)] if not re.match("…", LABELS[k])]
                assert above[-1] == key.removesuffix(end) + ("_r1" if end.startswith("_r") else "")


def test_every_cell_of_the_page(drawn):
    _, tables, _ = drawn
    head, *rows = tables[0]
    assert head == ["", *NAMES, "chance"]
    rows = [row for row in rows if len(row) > 1]
    for n, row in zip(NUMBERS, rows, strict=True):
        cells = [f"{written(n.key, value(n.key, r))} {written_spread(n.key, *spread(n.key, r))}" for r in (0, 1)]
        assert row == [n.label, *cells, written_chance(n.key)]


def in_order():
    out = []
    for n in NUMBERS:
        out += [*(written(n.key, value(n.key, r)) for r in (0, 1)), *filter(None, [written_chance(n.key)])]
        out += [written_spread(n.key, *spread(n.key, r)) for r in (0, 1)]
    return out


def test_every_number_in_the_terminal(monkeypatch):
    """As plain text and as a table with colours: values, chance, then the spreads under them, run after run."""
    table, _, _ = results_table(report()).partition("\n\n")
    assert re.split(r" {2,}", table.splitlines()[0].strip()) == [*NAMES, "chance"]
    assert numbers_in(table) == in_order()
    for n in NUMBERS:
        assert re.search(rf"^ +{re.escape(n.label)} +{re.escape(written(n.key, value(n.key, 0)))} ", table, re.M), n.key
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "200")
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    print_results(report(), terminal)
    lines = re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue()).partition(findings(report())[0][:20])[0]
    assert numbers_in(lines) == in_order()
    for n in NUMBERS:
        assert re.search(rf"{re.escape(n.label)} +│ +{re.escape(written(n.key, value(n.key, 0)))} ", lines), n.key
    assert re.search(r"one +┃ +two +┃ +chance", lines)


# what the labels say of the numbers that `evaluate` prints besides, and how they are written
SAID_BESIDES = {"images": "pictures measured", "captions": "their captions", "objects": "objects that a caption names",
                "best": "the most that pointing and mass can be", "fine_loss_shuffled": "shuffled pictures",
                "grounding_gap_sd": "deviation of the gap",
                "native_t2i_r1": "caption finds its picture under", "native_i2t_r1": "picture finds its caption under",
                **{f"native_{way}_r{k}": f"… among the first {k}" for way in ("t2i", "i2t") for k in (5, 10)}}  # fmt: skip


def test_every_line_of_the_list_that_evaluate_prints():
    """Each number once, under its own key, with its own chance and label; what continues a line stands under it."""
    assert {n.key for n in OTHERS} == set(SAID_BESIDES)
    known = {key: 0.2 + 0.0123 * i for i, key in enumerate([*LABELS, *SAID_BESIDES])}
    known |= {"images": 50.0, "captions": 70.0, "objects": 7.0}
    chances = {f"{key}_chance": 0.01 + 0.003 * i for i, key in enumerate(known)}
    lines = [re.split(r" {2,}", line.strip()) for line in numbers_table(known | chances).splitlines()[1:-1]]
    assert [line[0] for line in lines].index("native_t2i_r5") == [line[0] for line in lines].index("native_t2i_r1") + 1
    assert sorted(key for key, *_ in lines) == sorted(known)
    for key, value, *rest in lines:
        base = 0.0 if key == "grounding_gap" else chances[f"{key}_chance"]
        wanted = [f"{x:.0f}" if key in ("images", "captions", "objects") else f"{x:.3f} nats" if "loss" in key or "gap" in key
                  else f"{x:.0f} s" if key == "seconds" else f"{100 * x:.1f} %" for x in (known[key], base)]
        assert [value, rest[0]] == wanted and re.search((LABELS | SAID_BESIDES)[key], rest[1]), key


def test_the_better_one_is_bold_in_the_terminal(monkeypatch):
    """The second run, but for the loss; without spreads nothing is within them."""
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "200")
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    print_results(DemoReport("t", [Run(run.name, final=run.final) for run in report().runs]), terminal)
    bold = re.findall(r"\x1b\[1m([^\x1b]*[\d][^\x1b]*)\x1b", terminal.getvalue())
    assert [x.strip() for x in bold] == [written(n.key, value(n.key, int(n.better == "higher"))) for n in NUMBERS if n.better]


def test_equal_numbers_are_not_bold_and_a_loss_is_better_below_its_chance(monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "200")
    numbers = (Number("miou", "a share", "G", headline=True),
               Number("loss", "a loss", "G", "nats", "lower", 2.0, headline=True))
    runs = [Run(name, final={"miou": 0.5, "miou_chance": 0.1, "loss": loss}) for name, loss in (("one", 2.5), ("two", 1.5))]
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    print_results(DemoReport("t", runs, numbers=numbers), terminal)
    assert [x.strip() for x in re.findall(r"\x1b\[1m([^\x1b]*[\d][^\x1b]*)\x1b", terminal.getvalue())] == ["1.500 nats"]
    said = findings(DemoReport("t", runs, numbers=numbers))
    assert [text for text in said if "chance" in text] == ["One is no better than chance on a loss."]


def test_what_some_run_lacks_is_not_said_of_all():
    """Seconds of one; a prediction of one; a first example without classes."""
    runs = report().runs
    runs[1].final.pop("seconds")
    assert "which took" not in page(DemoReport("t", runs))
    e = [explained(r, i) for r in (0, 1) for i in (0, 1)]
    bare = replace(e[0], truth=None, classes=())
    for first, second in (((bare, e[1]), (e[2], e[3])), ((e[0], e[1]), (replace(e[2], predicted=None), e[3]))):
        with figures_asked_for() as calls:
            page(DemoReport("t", [Run("one", examples=first), Run("two", examples=second)]))
        (call,) = calls["masks"]
        assert len(call.images) == 1 and np.array_equal(call.truths[0], e[1].truth)
        assert tuple(call.classes) == ("k0", "k1", "k2")


def test_each_gap_is_said_of_its_own_run_and_each_split_is_named():
    runs = [Run(name, metrics=[{"step": 1, "split": "kept apart", "t2i_r1": 0.5}], examples=(explained(r, 0),),
                final={"grounding_gap": 0.5 + r, "fine_loss": 1.0, "fine_loss_shuffled": 1.5 + r})
            for r, name in enumerate(NAMES)]
    with figures_asked_for():
        text = page(DemoReport("t", runs))
    for r, name in enumerate(NAMES):
        assert f"<p><b>{name}.</b> Grounding gap {0.5 + r:.3f} nats: the fine-grained loss is 1.000" in text
    assert "validation sets (kept apart)" in text


def test_numbers_in_a_column_go_by_what_is_there_then_by_what_is_predicted_most():
    predicted = np.array([[2, 3, 3], [0, 3, 2]])
    assert plots.numbering(np.full((2, 3), 1), [predicted, predicted], 3, 4) == {1: 1, 3: 2, 2: 3}


def test_a_number_has_the_chance_of_its_own_key():
    numbers = (Number("pointing", "seen", "Seen"), Number("unseen_pointing", "unseen", "Unseen"))
    final = {"pointing": 0.5, "pointing_chance": 0.1, "unseen_pointing": 0.4, "unseen_pointing_chance": 0.2}
    one = DemoReport("t", [Run("one", final=final)], numbers=numbers)
    assert numbers_in(results_table(one).partition("\n\n")[0]) == ["50.0 %", "10.0 %", "40.0 %", "20.0 %"]
    assert [row for row in Tables(page(one)).tables[0][1:] if len(row) > 1] == [
        ["seen", "50.0 %", "10.0 %"], ["unseen", "40.0 %", "20.0 %"]]


def test_sentences_name_the_run_that_is_ahead_with_its_numbers():
    """The second run is a little ahead everywhere; without spreads all of it is said."""
    runs = [Run(run.name, final=run.final) for run in report().runs]
    (ahead,) = [text for text in findings(DemoReport("t", runs)) if "is ahead on" in text]
    assert ahead.startswith("Two is ahead on")
    for key, words in SAID.items():
        assert f"{words} ({written(key, value(key, 1))} against {written(key, value(key, 0))})" in ahead
    final = {f"{key}_chance": 0.9 for key in SAID} | {key: value(key, 0) for key in SAID if key != "choice"}
    at_chance = Run("low", final=final)
    (low,) = findings(DemoReport("t", [at_chance]))
    assert all((words in low) == (key not in ("choice", "grounding_gap")) for key, words in SAID.items())


@pytest.mark.parametrize("wide", [0, 1])
def test_a_difference_is_measured_by_the_spreads_of_both(wide):
    """0.1 apart, where one of the two moves by 0.2 from seed to seed."""
    runs = [Run(name, final={"pointing": 0.5 + 0.1 * r}, spread={"pointing": (0.5, 0.2 if r == wide else 0.001, 5)})
            for r, name in enumerate(NAMES)]
    (said, _) = findings(DemoReport("t", runs))
    assert said == "Within the spread over seeds: pointing (60.0 % against 50.0 %, two ahead)."


@pytest.mark.parametrize("wide", [0, 1, 2])
def test_of_three_runs_the_best_two_are_compared_by_their_own_spreads(wide):
    """The first is far behind; whether it moves much from seed to seed says nothing of the others."""
    runs = [Run(f"run {r}", final={"pointing": x}, spread={"pointing": (x, 0.2 if r == wide else 0.001, 5)})
            for r, x in enumerate((0.1, 0.5, 0.6))]
    ahead = "pointing (60.0 % against 50.0 %"
    assert findings(DemoReport("t", runs))[0] == (f"Run 2 is ahead on {ahead})." if wide == 0 else
                                                  f"Within the spread over seeds: {ahead}, run 2 ahead).")


def test_heat_maps_are_those_of_their_run(drawn):
    """A figure an example, all runs in it, with why it was chosen."""
    for i, call in enumerate(drawn[2]["explain"]):
        wanted = [(r, kind) for r in (0, 1) for kind in ("similarity", "weights")]
        for row, (r, kind) in zip(call.rows, wanted, strict=True):
            assert (row.name, row.kind) == (NAMES[r], kind) and np.array_equal(row.values, getattr(explained(r, i), kind))
        e = explained(0, i)
        assert np.array_equal(call.image, e.image) and call.words == e.words and call.grid == e.grid and call.title is None
        assert np.array_equal(call.objects, e.objects) and np.array_equal(call.masks, e.masks)
    assert len(drawn[2]["explain"]) == 2
    assert re.findall(r'<img alt="([^"]*)"', drawn[0])[:2] == [f"one, two, caption {i}" for i in (0, 1)]
    below = re.findall(r"<figcaption>(.*?)</figcaption>", drawn[0])[:2]
    assert below == ["“caption 0”: why this one", "“caption 1”: why that one"]


def test_runs_that_saw_something_else_have_a_figure_of_their_own():
    """Another grid, other words or another picture: nothing stands under a word that is not its own."""
    e, run = explained(0, 0), Run("one", examples=(explained(0, 0),))
    other = explained(1, 0)
    for change in ({"grid": (3, 2)}, {"words": ("a", "blue", "box0")}, {"image": 255 - e.image}):
        with figures_asked_for() as calls:
            page(DemoReport("t", [run, Run("two", examples=(replace(other, **change),))]))
        assert [[row.name for row in call.rows] for call in calls["explain"]] == [["one"] * 2, ["two"] * 2], change
        assert np.array_equal(calls["explain"][1].rows[1].values, other.weights)
    bare = replace(e, masks=None, objects=np.full(3, -1))
    with figures_asked_for() as calls:
        page(DemoReport("t", [Run("one", examples=(bare,))]))
    assert calls["explain"][0].title == "“caption 0”", "without a region there is no finding to put there"


def test_curves_and_masks_are_those_of_their_run(drawn):
    (call,), (masks,) = drawn[2]["curves"], drawn[2]["masks"]
    assert {name: list(rows) for name, rows in call.series.items()} == {run.name: list(run.metrics) for run in report().runs}
    assert list(call.series) == list(masks.predictions) == list(NAMES)
    for i in (0, 1):
        assert np.array_equal(masks.images[i], explained(0, i).image) and np.array_equal(masks.truths[i], explained(0, i).truth)
        for r, name in enumerate(NAMES):
            assert np.array_equal(masks.predictions[name][i], explained(r, i).predicted)
    assert tuple(masks.classes) == ("k0", "k1", "k2")


def test_settings_data_and_files_stand_in_their_columns(drawn):
    _, tables, _ = drawn
    rows = {row[0].removesuffix(" ≠"): row[1:] for table in tables[1:] for row in table}
    heads = [table[0] for table in tables[1:]]
    assert ["", *NAMES] in heads and ["", "training", "evaluation"] in heads
    assert rows["lambda_f"] == ["0.25", "1.25"] and rows["width"] == ["64", "64"]
    assert rows["name"] == ["trained-on", "tested-on"] and rows["count"] == ["11", "22"] and rows["python"] == ["3.99"]
    assert "on 50 pictures and 70 captions of tested-on" in drawn[0] and "3 steps on trained-on" in drawn[0]
    assert f"which took {written('seconds', value('seconds', 0))} and {written('seconds', value('seconds', 1))}" in drawn[0]
    for name in NAMES:
        assert rows[f"{name}: metrics"] == [f"{name}/m.jsonl"] and rows[f"{name}: checkpoint"] == [f"{name}/c"]


def test_every_panel_of_the_curves():
    series = {run.name: [row | {f"{key}_chance": chance(key, 0) for key in LABELS} for row in run.metrics]
              for run in report().runs}
    axes = plots.curves(series).axes
    assert len(axes) == len(PANELS)
    for ax, (title, (key, base)) in zip(axes, PANELS.items(), strict=True):
        assert title in ax.get_title(loc="left")
        lines = {line.get_label(): line for line in ax.lines if line.get_label() in NAMES}
        assert lines.keys() == set(NAMES)
        for r, name in enumerate(NAMES):
            assert lines[name].get_xdata().tolist() == [0, 1, 2, 3]
            assert lines[name].get_ydata().tolist() == [value_over_time(key, r, s) for s in range(4)], (title, name)
            (end,) = [t for t in ax.texts if t.get_text() == name]
            assert end.get_color() == lines[name].get_color()
        assert len({(line.get_color(), line.get_linestyle()) for line in lines.values()}) == 2
        flat = [line.get_ydata()[0] for line in ax.lines if line.get_label() not in NAMES]
        assert flat == ([] if base is None else [base if base == 0.0 else pytest.approx(chance(key, 0))])
        assert "step" in ax.get_xlabel() and ax.get_ylabel() == {
            "t2i_r1": "share of captions", "pointing": "share of names", "choice": "share of names", "miou": "mean IoU"
        }.get(key, "nats")


def test_names_stand_in_the_order_of_the_ends_of_their_lines():
    series = {name: [{"step": s, "pointing": x, "pointing_chance": 0.5} for s, x in enumerate((1 - end, end))]
              for name, end in (("one", 0.2), ("two", 0.8))}
    (ax,) = plots.curves(series).axes
    assert [t.get_text() for t in sorted(ax.texts, key=lambda t: t.get_position()[1])] == ["one", "chance", "two"]


def places(figure):
    """Axes by row from the top and column from the left, those of a size with the most of them."""
    by_size = {}
    for ax in figure.axes:
        box = ax.get_position()
        by_size.setdefault((round(box.width, 3), round(box.height, 3)), []).append((round(-box.y0, 3), round(box.x0, 3), ax))
    cells = max(by_size.values(), key=len)
    rows = sorted({y for y, _, _ in cells})
    return [[ax for y, _, ax in sorted(cells, key=lambda c: c[:2]) if y == row] for row in rows]


def beside(figure, ax):
    """The text of the figure that is nearest in height, left of the axes."""
    middle = ax.get_position().y0 + ax.get_position().height / 2
    texts = [t for t in figure.texts if t.get_ha() == "right"]
    return min(texts, key=lambda t: abs(t.get_position()[1] - middle)).get_text()


def test_every_row_of_the_masks():
    """White is where a model says nothing: it shows whose row it is. A class has one colour and one number in its column."""
    classes, images = ("k0", "k1", "k2", "k3"), [explained(0, i).image for i in (0, 1)]
    truths = [np.where(np.arange(12) < 5, 3, np.where(np.arange(12) < 9, 1, -1)) * np.ones((8, 1), int) for _ in (0, 1)]
    said = {name: [np.where(np.arange(12)[None] + np.arange(8)[:, None] < 12 + 2 * r + i, x, -1) for i, x in enumerate(truths)]
            for r, name in enumerate(NAMES)}
    figure = plots.masks(images, truths, said, classes)
    grid = places(figure)
    assert [beside(figure, row[0]) for row in grid] == ["picture", "true", *NAMES]
    assert [t.get_text() for t in figure.texts if t.get_text().startswith("1 ")] == ["1 k1\n2 k3"] * 2
    for i in (0, 1):
        assert np.array_equal(grid[0][i].images[0].get_array(), images[i])
        colours = {}
        for row, labels in zip(grid[1:], (truths, *said.values()), strict=True):
            drawn = np.asarray(row[i].images[0].get_array())
            assert np.array_equal((drawn == 255).all(-1), labels[i] == -1)
            for number, k in (("1", 1), ("2", 3)):
                colours.setdefault(k, set()).update(map(tuple, drawn[labels[i] == k].tolist()))
                (text,) = [t for t in row[i].texts if t.get_text() == number]
                assert labels[i][int(text.get_position()[1]), int(text.get_position()[0])] == k
        assert all(len(each) == 1 for each in colours.values()) and colours[1] != colours[3]


def test_the_words_table_counts_rows_and_columns_from_the_top_left():
    e = explained(0, 0)
    e.weights[:] = 0.05
    for l, p in enumerate((1, 5, 3)):
        e.weights[l, p] = 0.4 + 0.1 * l
    lines = re.findall(r"^(\S+) +(\(\d, \d\)) +([\d.]+) +([\d.]+)$", words_table(e), re.M)
    places = {word: (place, f"{0.4 + 0.1 * l:.3f}", f"{0.4 + 0.1 * l:.3f}")
              for l, (word, place) in enumerate(zip(e.words, ("(1, 2)", "(2, 3)", "(2, 1)")))}
    assert {word: tuple(rest) for word, *rest in lines} == places
