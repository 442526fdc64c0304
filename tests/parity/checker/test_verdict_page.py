import html.parser
import json
import math
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from parity.checker.page import figures as stage_figures
from parity.checker.page import page as verdict_page
from parity.checker.page.page import page, write_page

EVIL = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>\x1b[31m\u202e"


def stage(name, ours, theirs, off, **changes):
    return {"name": name, "equation": "eq. 2", "probe": "padded", "rows": "tokens", "columns": "patches", "ours": ours,
            "theirs": theirs, "where": "losses.py:12 sim", "off": off} | changes


def finding(id, explained_by=()):
    return {"id": id, "value": None, "what": "fine loss", "title": f"title of {id}", "words": f"words of {id}",
            "evidence": f"evidence of {id}", "fix": f"fix of {id}", "training": f"training of {id}",
            "explained_by": list(explained_by)}


def report(**changes):
    deviation = {
        "id": "threshold.constant", "value": 0.3, "way": "", "stage": "threshold", "title": "a constant threshold",
        "words": "sigma is 0.3 instead of 1/P", "equation": "eq. 3", "fix": "sigma = 1 / v.shape[1]",
        "training": "Sparsity ignores the resolution.", "hidden_by": [],
        "effect": {"probe": "padded_again", "loss": 0.123, "gradient": 0.5},
    }
    return {
        "format": "sparc-check", "version": 1, "target": "losses.py:fine", "verdict": "explained",
        "summary": "SPARC: differs, explained", "headline": "Your loss equals eq. 6 with sigma = 0.3.", "exit_code": 1,
        "conditions": [],
        "convention": {"call": "fine(x=patches)", "written": "v,t,mask", "framework": "torch", "dtype": "float64",
                       "device": "cpu",
                       "items": [{"what": "x", "value": "patches (B,P,D)", "sure": "certain", "why": "others raise"}]},
        "deviations": [deviation],
        "harmless": [deviation | {"id": "similarity.scaled", "words": "the similarity is multiplied by 1/tau", "effect": None}],
        "equals": [["threshold.absent", "norm.missing"]],
        "behaviour": [finding("edge.mutates_inputs"), finding("edge.padding_leak", ["threshold.constant"])],
        "notes": ["float16: off by 1e-4"], "stage": "threshold", "evidence": "padded", "base": "eq. 6",
        "rounding": {"loss": 1e-9, "gradient": 1e-7}, "limits": [], "edges": [], "tried": {},
        "off": [{"probe": "padded", "shows": "everything", "loss": 0.25, "gradient": 0.031},
                {"probe": "single", "shows": "no padding", "loss": 1e-16, "gradient": None},
                {"probe": "flat", "shows": "a flat row", "loss": None, "gradient": 2e-15}],
        "reproduced_to": 3e-15, "losses": {"fine": "explained"}, "lambdas": {}, "stages": [], "half": {}, "memory": None,
        "error": None, "seconds": 6.2, "calls": 127, "runs_in": "process", "versions": {"torch": "2.13.0"},
        "sentences": {"said": 5, "weaker": 1, "withheld": 2}, "stage_seen": True, "stage_open": [], "floors": [],
    } | changes


@pytest.fixture(scope="module")
def with_figures():
    rows = [[0.5, -1.0, 0.25], [1.0, 0.0, 0.5]]
    return report(stages=[
        stage("similarity", rows, [[2 * x for x in row] for row in rows], 1e-16), stage("minmax", rows, rows, 0.0),
        stage("sparse", rows, rows[::-1], 0.4), stage("weights", rows, None, None),
    ])


class Reader(html.parser.HTMLParser):
    """Tags and attributes as a browser would see them; the text that is shown."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    def shown(self):
        return " ".join(" ".join(self.text).split())


def replace_texts(x, by):
    if isinstance(x, dict):
        return {key: replace_texts(value, by) for key, value in x.items()}
    if isinstance(x, list):
        return [replace_texts(value, by) for value in x]
    return by if isinstance(x, str) else x


def test_report_is_what_a_check_writes(with_figures):
    schema = json.loads((Path(verdict_page.__file__).parents[1] / "check.schema.json").read_text())
    jsonschema.validate(with_figures, schema)


def test_page_says_it_all():
    seen = Reader(page(report()))
    assert not seen.open
    for words in ("Differs, explained", "Your loss equals eq. 6 with sigma = 0.3.", "SPARC: differs, explained",
                  "A constant threshold", "Sigma is 0.3 instead of 1/P.", "sigma = 1 / v.shape[1]",
                  "moves the loss by 12% and the gradient by 50% (batch padded again)", "Sparsity ignores the resolution.",
                  "by any value or gradient: threshold.absent, norm.missing.",
                  "do not show Title of edge.mutates_inputs", "Evidence of edge.mutates_inputs.", "fix of edge.mutates_inputs",
                  "What follows from it. Evidence of edge.padding_leak.", "The similarity is multiplied by 1/tau",
                  "x patches (B,P,D) certain others raise", "--call v,t,mask", "Equal on 1 of 3 batches.", "numbers to 3e-15",
                  "padded 25% 3.1% everything single 1e-16 – no padding flat not finite 2e-15 a flat row",
                  "Float16: off by 1e-4", "torch 2.13.0, 127 calls in a process of its own, 6.2 s",
                  "5 sentences measured again and said, 1 said weaker, 2 withheld"):
        assert words in seen.shown(), words


def test_first_stage_that_goes_wrong_is_marked_and_no_other(with_figures):
    seen = Reader(page(with_figures))
    classes = [(attrs.get("class"), tag) for tag, attrs in seen.tags if tag in ("figure", "li") and attrs.get("class")]
    assert [c for c, tag in classes if tag == "li"] == ["harmless", "same", "off first", "unseen"]
    assert [c for c, tag in classes if tag == "figure"] == ["harmless", "same", "first"]
    assert seen.shown().count("goes wrong here first") == 1
    assert "yours: losses.py:12 sim" in seen.shown()
    assert "Threshold: off by 40%" in seen.shown()


def test_a_sound_one_has_nothing_marked_and_nothing_to_change():
    text = page(report(verdict="eq6", deviations=[], stage=None, stages=[stage("minmax", [[1.0, 0.5]], [[1.0, 0.5]], 1e-16)]))
    assert "goes wrong here" not in text and "What to change" not in text and 'class="verdict good"' in text


@pytest.mark.parametrize("off, words", [(0.4, "The figures and the batches below show the difference"),
                                        (0.0, "Of the arrays that were seen none shows it")])
def test_an_unexplained_one_says_whether_a_figure_shows_it(off, words):
    seen = [stage("minmax", [[1.0, 0.5]], [[1.0, 0.5 + off]], off)]
    assert words in page(report(verdict="unexplained", deviations=[], stage="loss", stages=seen))


def test_in_a_sound_one_an_array_that_is_off_is_no_stage():
    found = [stage("minmax", [[1.0, 0.5]], [[1.0, 0.5]], 0.0), stage("loss_vt", [[1.0, 0.5]], [[0.3, 0.5]], 0.7)]
    assert "Loss of groups: not seen" in Reader(page(report(verdict="eq6", stages=found))).shown()
    assert "Loss of groups: off by 70%" in Reader(page(report(stages=found))).shown()


def test_no_mark_on_a_stage_that_the_picture_shows_equal():
    found = [stage("grouped", [[1.0, 0.5]], [[1.0, 0.5]], 0.0), stage("logits_vt", [[1.0, 0.5]], [[0.3, 0.5]], 0.7)]
    seen = Reader(page(report(verdict="unexplained", stage="grouping", stages=found)))
    assert [attrs.get("class") for tag, attrs in seen.tags if tag == "figure"] == ["same", "first"]
    assert seen.shown().count("goes wrong here first") == 1


def test_what_follows_stands_under_its_cause():
    text = Reader(page(report())).shown()
    assert text.index("A constant threshold") < text.index("Evidence of edge.padding_leak") < text.index("do not show")
    other = Reader(page(report(behaviour=[finding("edge.batch_split", ["reduction.token"])]))).shown()
    assert "What follows from it Evidence of edge.batch_split (reduction.token)" in other


def test_differences_are_drawn_in_the_units_of_off():
    ours, theirs = [[3.0, 4.0], [0.0, 2.0]], [[30.0, 40.0], [2.0, 2.0]]
    made = stage_figures.change(*(stage_figures.matrix(x) for x in (ours, theirs)), "weights")
    assert abs(made[0]).max() < 1e-12 and abs(made).max() == pytest.approx(0.5**0.5)
    made = stage_figures.change(*(stage_figures.matrix(x) for x in (ours, theirs)), "logits_vt")
    assert abs(made).max() == pytest.approx(36 / 4)
    assert stage_figures.biggest(stage("weights", ours, theirs, 0.7)) == pytest.approx(0.5**0.5)
    assert stage_figures.biggest(stage("weights", ours, None, None)) == 0.0


def test_errors_of_more_than_ten_times_are_factors_with_their_cause():
    rows = [{"probe": "zero_unit", "shows": "zeros", "loss": 0.0, "gradient": 3e11}]
    assert "3e+11 times, of zeros' norm" in Reader(page(report(off=rows))).shown()
    assert "301%" in Reader(page(report(off=[{"probe": "padded", "shows": "", "loss": 3.01, "gradient": None}]))).shown()


def test_the_reading_that_it_is_measured_against_is_named():
    assert "Against Listing 1 in float64" in Reader(page(report(base="Listing 1"))).shown()


def test_limits_ties_and_what_was_tried_are_said():
    tie = report()["deviations"][0] | {"id": "threshold.strict", "words": "the threshold is strict"}
    tried = {"B": [1, 64], "P": [2, 256], "similarity": [0.3, 500.0], "dtypes": ["float64"]}
    seen = Reader(page(report(edges=[tie], tried=tried)))
    assert "Only where numbers are exactly equal" in seen.shown() and "The threshold is strict" in seen.shown()
    assert "Tried: B 1-64, P 2-256, similarities to 500, float64." in seen.shown()


def test_listing_1_is_a_reading_and_no_fault():
    said = Reader(page(report(verdict="listing1"))).shown()
    assert "The reading of the paper A constant threshold" in said and "What to change" not in said


def test_unexplained_never_names_a_cause():
    said = Reader(page(report(verdict="unexplained", deviations=[]))).shown()
    assert "gives these losses and gradients, so no cause is named here. The first stage that goes wrong is threshold" in said
    said = Reader(page(report(verdict="unexplained"))).shown()
    assert "there is something else, so no cause is named here" in said and "Found on the way A constant threshold" in said
    assert "What to change" not in said


def test_only_what_is_off_is_red():
    cells = [attrs.get("class", "") for tag, attrs in Reader(page(report())).tags if tag == "td"]
    assert [c for c in cells if c.startswith("n")] == ["n off", "n off", "n", "n", "n off", "n"]


@pytest.mark.parametrize("verdict", [*verdict_page.VERDICTS, "something new"])
def test_every_verdict_has_a_page(verdict):
    changes = {"verdict": verdict, "conditions": ["no padding", "B = 1"], "losses": {"fine": "eq6", "global": verdict},
               "error": {"type": "RuntimeError", "message": "no", "lines": ["f.py:3 in g:  x"], "call": "g(v, t)"}}
    said = Reader(page(report(**changes))).shown()
    assert "Raised by g(v, t) RuntimeError: no f.py:3 in g: x" in said
    assert "with all of these conditions: no padding B = 1" in said
    assert "fine loss: equals eq. 6; global loss:" in said


def test_nothing_of_a_stranger_is_ever_markup():
    whole = report(error={"type": "x", "message": "x", "lines": ["x"], "call": "x"}, conditions=["x"],
                   stages=[stage("x", [[1.0]], [[2.0]], 0.5)])
    evil = replace_texts(whole, EVIL) | {"versions": {EVIL: EVIL}, "losses": {EVIL: EVIL, "fine": EVIL}}
    for verdict in ("explained", "unexplained", EVIL):
        hold_harmless(page(evil | {"verdict": verdict}))


def hold_harmless(text):
    seen = Reader(text)
    assert {tag for tag, _ in seen.tags} <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "code", "div", "span", "p", "section", "pre", "b",
        "ul", "ol", "li", "figure", "figcaption", "img", "table", "thead", "tbody", "tr", "th", "td", "footer",
    }
    assert all(not name.startswith("on") for _, attrs in seen.tags for name in attrs)
    assert text.count("<img") == text.count('src="data:image/png;base64,') == 1
    assert "\x1b" not in text and "\u202e" not in text
    assert seen.shown().count("<script>alert('x')</script>") > 20


def test_nothing_is_loaded(with_figures):
    text = page(with_figures)
    assert "default-src 'none'" in text
    assert not any(word in text for word in ("http:", "https:", "//cdn", "<script", "<link", "@import", "url("))


@pytest.mark.parametrize("key", sorted(report()))
def test_any_key_may_be_missing(key):
    whole = report()
    del whole[key]
    assert not Reader(page(whole)).open
    assert not Reader(page(whole | {key: None})).open


def test_empty_report():
    assert "No verdict" in page({})


def test_nan_and_infinity_are_null():
    drawn = [stage("minmax", [[0.0, 1.0, 1.0], [0.5, 1.0, 0.0]], [[None, 0.1, 1.0], [0.5, None, 0.0]], None)]
    text = page(json.loads(json.dumps(report(stages=drawn, stage=None))))
    assert "Min-max: not finite" in Reader(text).shown()
    assert math.isnan(stage_figures.matrix([[None, 1.0]])[0, 0])


@pytest.mark.parametrize("bad", [None, [], "text", [["a"]], [[1.0], [1.0, 2.0]], [[[1.0]]], {"x": 1}, 3.0])
def test_what_is_no_matrix_draws_nothing(bad):
    assert stage_figures.matrix(bad) is None
    assert "<figure" not in page(report(stages=[stage("minmax", bad, [[1.0]], 0.0)]))


def test_stages_of_other_shapes_stand_side_by_side():
    names = ("similarity", "weights")
    text = page(report(stages=[stage(name, [[1.0, 2.0]] * 3, [[1.0, 2.0, 3.0]] * 40, 1.0) for name in names]))
    assert text.count("<img") == 2


def test_no_stage_seen_draws_nothing():
    text = page(report(stages=[stage("minmax", [[1.0]], None, None)]))
    assert "<figure" not in text and "Min-max: not seen" in text


def test_picture_fits_the_page():
    for shape in ((6, 9), (6, 16), (55, 196), (1, 1)):
        x = stage_figures.matrix([[0.1 * j * k for k in range(shape[1])] for j in range(shape[0])])
        _, width = stage_figures.picture(x, x, "tokens", "$patches$\\frac")
        assert width <= 1010


def test_file_replaces_an_old_one_and_leaves_no_part(tmp_path):
    path = write_page(report(), tmp_path / "deep" / "verdict.html")
    write_page(report(verdict="eq6"), path)
    assert "Equals eq. 6" in path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["verdict.html"]


TITLES = {
    "similarity": "Similarity", "minmax": "Min-max", "sparse": "Threshold", "weights": "Weights", "grouped": "Grouped patches",
    "logits_vt": "Logits", "logits_tv": "Logits, other direction", "loss_vt": "Loss of groups", "loss_tv": "Loss of tokens",
}


def test_stages_have_their_own_titles():
    assert {name: stage_figures.titled({"name": name}) for name in stage_figures.STAGES} == TITLES


@pytest.mark.parametrize("name, signed", [("similarity", True), ("weights", False), ("logits_vt", True), ("loss_vt", False)])
def test_each_panel_is_what_its_title_says(monkeypatch, name, signed):
    """Yours left, ours beside it, yours - ours in the units that are named; scales and labels of their own."""
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    panels = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *given, **named: panels.extend(figure.axes))
    drawn: dict = {}
    sound = Axes.pcolormesh
    monkeypatch.setattr(Axes, "pcolormesh", lambda ax, x, **how: [drawn.setdefault(ax, (x, how)), sound(ax, x, **how)][1])
    ours, theirs = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]]), np.array([[0.0, 2.0, 0.0], [1.0, 0.0, 1.0]])
    stage_figures.stage_figure(stage(name, ours.tolist(), theirs.tolist(), 0.4, columns="patches"), False, 0.75)
    assert len(panels) == 3
    between = (theirs - ours) / 4 if name.startswith("lo") else unit(theirs) - unit(ours)
    units = "of the largest" if name.startswith("lo") else "rows of length 1"
    for ax, title, wanted in zip(panels, ("yours", "reference", "yours − reference"), (theirs, ours, between)):
        x, how = drawn[ax]
        assert ax.get_title() == title
        np.testing.assert_allclose(np.ma.getdata(x), wanted, atol=1e-15)
        last = ax is panels[2]
        assert (how["vmin"], how["vmax"]) == ((-0.75, 0.75) if last else (-4.0, 4.0) if signed else (0.0, 4.0))
        assert how["cmap"].name == ("RdBu_r" if signed or last else "Greys")
        assert ax.get_xlabel() == (units if last else "patches" if ax is panels[1] else "3 patches")
    assert panels[0].get_ylabel() == "tokens" and [ax.get_ylabel() for ax in panels[1:]] == ["", ""]


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_a_figure_names_its_equation_and_the_line_of_code(with_figures):
    said = Reader(page(with_figures)).shown()
    assert "Min-max eq. 2; equal; yours: losses.py:12 sim" in said
    assert said.index("goes wrong here first") > said.index("Threshold goes")


def test_of_several_stages_that_differ_the_first_is_marked():
    rows = [[0.5, -1.0, 0.25], [1.0, 0.0, 0.5]]
    found = [stage("minmax", rows, rows, 0.0), stage("sparse", rows, rows[::-1], 0.4), stage("weights", rows, rows[::-1], 0.4)]
    assert stage_figures.first_wrong(report(stage=None), found) is found[1]
    assert stage_figures.first_wrong(report(stage="weights"), found) is found[2]


def test_the_page_names_what_the_batches_were_held_against():
    assert "Against Listing 1 in float64." in Reader(page(report(base="Listing 1"))).shown()
