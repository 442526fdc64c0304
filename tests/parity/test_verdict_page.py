import html.parser
import json
import math

import pytest

from parity import stage_figures
from parity.verdict_page import STAGES, VERDICTS, matrix, page, write_page

EVIL = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>\x1b[31m\u202e"


def stage(ours, theirs, off, harmless=False):
    return {"ours": ours, "theirs": theirs, "off": off, "harmless": harmless}


def report(**changes):
    return {
        "name": "losses.py:fine", "verdict": "explained", "sentence": "Your loss equals eq. 6 with sigma = 0.3.",
        "badge": "SPARC: differs",
        "convention": [{"what": "x", "value": "patches (B,P,D)", "sure": 0.98, "why": "the other order raises"}],
        "deviations": [{
            "id": "threshold.constant", "title": "a constant threshold", "words": "sigma is 0.3 instead of 1/P",
            "equation": "eq. 3", "fix": "sigma = 1 / v.shape[1]", "training": "Sparsity ignores the resolution.",
            "effect_loss": 0.123, "effect_gradient": 0.5,
        }],
        "harmless": [{"id": "similarity.scaled", "words": "the similarity is multiplied by 1/tau"}], "conditions": [],
        "stage": "threshold",
        "probes": [
            {"probe": "padded", "theirs": 1.25, "ours": 1.0, "loss_off": 0.25, "gradient_off": 0.031, "shows": "everything"},
            {"probe": "single", "theirs": 2.0, "ours": 2.0, "loss_off": 1e-16, "gradient_off": 2e-15, "shows": "no padding"},
        ],
        "behaviour": [{"id": "edge.padding_leak", "words": "padding changes the loss", "evidence": "by 12 %"}],
        "stages": {}, "versions": {"torch": "2.13.0"}, "seconds": 6.2, "error": None,
    } | changes


@pytest.fixture(scope="module")
def with_figures():
    rows = [[0.5, -1.0, 0.25], [1.0, 0.0, 0.5]]
    return page(report(stages={
        "similarity": stage(rows, [[2 * x for x in row] for row in rows], 1.0, harmless=True), "minmax": stage(rows, rows, 0.0),
        "sparse": stage(rows, rows[::-1], 0.4), "weights": stage(rows, None, None),
    }))


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


def test_page_says_it_all():
    seen = Reader(page(report()))
    assert not seen.open
    for words in ("Differs, explained", "Your loss equals eq. 6 with sigma = 0.3.", "SPARC: differs", "A constant threshold",
                  "Sigma is 0.3 instead of 1/P.", "sigma = 1 / v.shape[1]", "changes the loss by 12% and the gradient by 50%",
                  "Sparsity ignores the resolution.", "Padding changes the loss. by 12 %",
                  "patches (B,P,D) 98% the other order raises",
                  "padded 1.25 1 25% 3.1% everything",
                  "single 2 2 1e-16 2e-15 no padding", "torch 2.13.0, checked in 6.2 s",
                  "The similarity is multiplied by 1/tau"):
        assert words in seen.shown(), words


def test_first_stage_that_goes_wrong_is_marked_and_no_other(with_figures):
    seen = Reader(with_figures)
    classes = [(attrs.get("class"), tag) for tag, attrs in seen.tags if tag in ("figure", "li") and attrs.get("class")]
    assert [c for c, tag in classes if tag == "li"] == ["harmless", "same", "off first", "unseen"]
    assert [c for c, tag in classes if tag == "figure"] == ["harmless", "same", "first", "unseen"]
    assert seen.shown().count("goes wrong here first") == 1
    assert "goes wrong here" not in page(report(verdict="eq6", stage=None, stages={"minmax": stage([[1.0]], [[1.0]], 1e-16)}))


def test_only_what_is_off_is_red():
    cells = [attrs.get("class", "") for tag, attrs in Reader(page(report())).tags if tag == "td"]
    assert [c for c in cells if c.startswith("n")][:8] == ["n", "n", "n off", "n off", "n", "n", "n", "n"]


@pytest.mark.parametrize("verdict", [*VERDICTS, "something new"])
def test_every_verdict_has_a_page(verdict):
    changes = {"verdict": verdict, "deviations": [], "error": "RuntimeError: no", "conditions": ["no padding", "B = 1"]}
    said = Reader(page(report(**changes))).shown()
    assert "RuntimeError: no" in said
    assert "with all of these: no padding B = 1" in said
    assert ("no cause is named here. The first stage that goes wrong is threshold" in said) == (verdict == "unexplained")


def test_nothing_of_a_stranger_is_ever_markup():
    whole = report(error={"type": EVIL, "message": EVIL, "lines": [EVIL]}, note=EVIL, conditions=[EVIL])
    evil = replace_texts(whole, EVIL)
    evil["stages"] |= {EVIL: stage([[1.0]], [[2.0]], EVIL)}
    evil["versions"] |= {EVIL: EVIL}
    evil["behaviour"] += [EVIL]
    evil["harmless"] += [EVIL]
    text = page(evil)
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
    text = with_figures
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


def test_what_json_cannot_hold():
    rows = [[None, "inf", 1.0], [0.5, "nan", 0.0]]
    drawn = {"minmax": stage([[0.0, 1.0, 1.0], [0.5, 1.0, 0.0]], rows, "nan")}
    probes = [{"probe": "flat", "theirs": "nan", "ours": 1.0, "loss_off": "nan", "gradient_off": None}]
    text = page(json.loads(json.dumps(report(stages=drawn, stage=None, probes=probes))))
    assert "flat nan 1 NaN" in Reader(text).shown()
    assert "Min-max: off by NaN" in Reader(text).shown()
    assert math.isnan(matrix(rows)[0, 0]) and matrix(rows)[0, 1] == math.inf


@pytest.mark.parametrize("bad", [None, [], "text", [["a"]], [[1.0], [1.0, 2.0]], [[[1.0]]], {"x": 1}, 3.0])
def test_what_is_no_matrix_draws_nothing(bad):
    assert matrix(bad) is None
    assert "<figure" not in page(report(stages={"minmax": stage(bad, [[1.0]], 0.0)}))


def test_stages_of_other_shapes_stand_side_by_side():
    text = page(report(stages={name: stage([[1.0, 2.0]] * 3, [[1.0, 2.0, 3.0]] * 40, 1.0) for name in list(STAGES)[:2]}))
    assert text.count("<img") == 2


def test_no_stage_seen_draws_nothing():
    text = page(report(stages={"minmax": stage([[1.0]], None, None)}))
    assert "<figure" not in text and "Min-max: not seen" in text


def test_picture_fits_the_page():
    for shape in ((6, 9), (6, 16), (55, 196), (1, 1)):
        x = matrix([[0.1 * j * k for k in range(shape[1])] for j in range(shape[0])])
        _, width = stage_figures.picture(x, x, "patches")
        assert width <= 1010


def test_file_replaces_an_old_one_and_leaves_no_part(tmp_path):
    path = write_page(report(), tmp_path / "deep" / "verdict.html")
    write_page(report(verdict="eq6"), path)
    assert "Equals eq. 6" in path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["verdict.html"]
