import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from sparc_ref.run.examples import Explained
from sparc_ref.show.report import DemoReport, Run, demo_report, page, print_results, results_table
from sparc_ref.show.results import NUMBERS, findings, what_was_run

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&\x1b[31m</td></table>"
FINAL = {"images": 64.0, "captions": 128.0, "t2i_r1": 0.5, "t2i_r1_chance": 1 / 64, "pointing": 0.6, "pointing_chance": 0.1,
         "miou": 0.2, "miou_chance": 0.01, "grounding_gap": 0.4, "seconds": 12.0}


def example(caption="a red box", seed=0, masks=True):
    rng = np.random.default_rng(seed)
    w = rng.random((3, 16))
    truth = np.full((16, 16), -1)
    truth[2:9, 3:8] = 1
    return Explained(rng.integers(0, 255, (16, 16, 3)).astype(np.uint8), caption, ("a", "red", caption[:12]), w - 0.5, w, w,
                     w / w.sum(1, keepdims=True), (4, 4), np.array([-1, 0, 0]), "0",
                     rng.integers(0, 3, (16, 16)) if masks else None, truth if masks else None, ("blue box", "red box", EVIL))


def rows(n=6):
    return [{"step": i, "loss_global": 1 / (i + 1), "pointing": i / n} for i in range(n)]


def full():
    one = Run("one", {"lambda_f": 1.0, "width": 64}, rows(), FINAL, {}, (example(),), {"metrics": "one/metrics.jsonl"})
    two = Run("two", {"lambda_f": 0.0, "width": 64}, rows(), FINAL | {"t2i_r1": 0.7, "pointing": 0.1, "grounding_gap": 0.0}, {},
              (example(seed=1),), {})
    return DemoReport("A title", (one, two), {"name": "drawn-train", "count": 100}, {"name": "drawn-test", "count": 64},
                      {"python": "3.12"}, ("sparc-ref demo --seed 0",), ("A note.",), scenes=1)


class Reader(HTMLParser):
    """Every tag, attribute and text; nesting checked."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, k, v or "") for k, v in attrs]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def self_contained(text):
    seen = Reader(text)
    assert not seen.open
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(seen.tags)
    for tag, name, value in seen.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "srcset", "action", "data"):
            assert tag == "img" and value.startswith("data:image/png;base64,")
    assert "http" not in re.sub(r"http-equiv|base64,[A-Za-z0-9+/=]+", "", text)
    assert "@import" not in text and "url(" not in text
    return seen


def test_one_file_with_every_section(tmp_path):
    from PIL import Image

    path = demo_report(tmp_path / "runs" / "demo", full())
    assert path == tmp_path / "runs" / "demo" / "report.html" and [p.name for p in path.parent.iterdir()] == ["report.html"]
    text = path.read_text(encoding="utf-8")
    seen = self_contained(text)
    headings = ["Results", "What each word looks at", "Learning curves", "Predicted and true masks", "Configuration", "Data",
                "Environment", "Files", "How to reproduce"]
    assert re.findall(r"<h2>(.*?)</h2>", text) == headings
    images = [v for tag, name, v in seen.attributes if tag == "img" and name == "src"]
    assert len(images) == 2 + 1 + 1                               # two runs that saw different pictures, curves, masks
    for image in images:
        Image.open(io.BytesIO(base64.b64decode(image.split(",")[1]))).verify()
    assert all(v for tag, name, v in seen.attributes if name == "alt")
    assert "lambda_f ≠" in text and "width ≠" not in text


def test_an_old_report_is_replaced_whole(tmp_path):
    (tmp_path / "report.html").write_text("x" * 10**6)
    assert "x" * 1000 not in demo_report(tmp_path, full()).read_text(encoding="utf-8")


def test_hostile_text_is_only_text():
    run = Run(EVIL, {EVIL: EVIL}, rows(), FINAL, {}, (example(EVIL),), {EVIL: EVIL})
    runs = (run, replace(run, name=EVIL + "2", final={}))
    numbers = tuple(replace(n, label=EVIL, group=EVIL) for n in NUMBERS)
    report = DemoReport(EVIL, runs, {"name": EVIL}, {"name": EVIL, "x": [EVIL]}, {EVIL: EVIL}, (EVIL,), (EVIL,), numbers, 1)
    text = page(report)
    seen = self_contained(text)
    assert "<script" not in text and "<img src=x" not in text and "\x1b" not in text
    assert any("<script>alert(1)</script>" in t for t in seen.texts)        # shown, not run
    assert "\x1b" not in results_table(report)


@pytest.mark.parametrize("run", [
    Run("bare"),
    Run("numbers", final={"t2i_r1": 0.5}),
    Run("odd numbers", final={"t2i_r1": float("nan"), "pointing": None, "miou": "0.3", "mass": float("inf"), "iou": True}),
    Run("curves", metrics=rows()),
    Run("rows without steps", metrics=[{"loss_global": 1.0}, {}]),
    Run("pictures without masks", examples=(example(masks=False),)),
])
def test_missing_pieces(run, tmp_path):
    text = demo_report(tmp_path, DemoReport("t", (run,))).read_text(encoding="utf-8")
    self_contained(text)
    assert "nan" not in text.split("<h2>")[1] and "How to reproduce" not in text
    assert ("No number was measured." in text) == (run.name not in ("numbers",))
    results_table(DemoReport("t", (run, Run("other"))))


def test_no_run_is_refused():
    with pytest.raises(ValueError, match="runs: expected at least one"):
        page(DemoReport("t", ()))


def test_a_number_that_one_run_lacks_reads_not_measured():
    report = full()
    two = replace(report.runs[1], final={k: v for k, v in report.runs[1].final.items() if k != "miou"})
    report = replace(report, runs=(report.runs[0], two))
    assert re.search(r"mean IoU, bare class names +20.0 % +not measured +1.0 %", results_table(report))
    assert "<td class=missing>not measured</td>" in page(report)
    assert "segmentation" not in " ".join(findings(report))


def test_findings_follow_the_numbers():
    report = full()
    said = " ".join(findings(report))
    assert "One is ahead on pointing (60.0 % against 10.0 %) and the grounding gap (0.400 nats against 0.000 nats)." in said
    assert "Two is ahead on captions finding pictures (70.0 % against 50.0 %)." in said
    assert "Equal: segmentation." in said
    assert "Two is no better than chance on pointing and the grounding gap." in said
    assert "may be luck" in said and "within the spread" not in said
    swapped = " ".join(findings(replace(report, runs=report.runs[::-1])))
    assert "One is ahead on pointing" in swapped and "Two is ahead on captions finding pictures" in swapped


def test_findings_know_the_spread():
    report = full()
    known = {"t2i_r1": (0.5, 0.02, 10), "grounding_gap": (0.4, 0.1, 1)}
    one = replace(report.runs[0], spread=known | {"pointing": (0.55, 0.3, 10)})
    two = replace(report.runs[1], spread=known | {"pointing": (0.12, 0.02, 10)})
    report = replace(report, runs=(one, two))
    said = " ".join(findings(report))
    assert "Within the spread over seeds: pointing (60.0 % against 10.0 %, one ahead)." in said
    assert "Two is ahead on captions finding pictures" in said
    assert "One is no better than chance on pointing." in said              # 0.6 is within 2 x 0.3 of 0.1
    assert "One is ahead on the grounding gap" in said and "may be luck" in said      # one seed is no spread
    table = results_table(report)
    assert "55.0 ± 30.0 % (10)" in table and "0.400 ± 0.100" not in table
    text = page(report)
    assert "55.0&nbsp;±&nbsp;30.0&nbsp;% (10)" in text
    assert "<b>70.0&nbsp;%</b>" in text and "<b>60.0" not in text


def test_a_gap_within_its_own_noise_is_chance():
    run = Run("one", final={"grounding_gap": 0.003, "grounding_gap_sd": 0.002})
    assert findings(DemoReport("t", (run,))) == ["One is no better than chance on the grounding gap."]
    assert findings(DemoReport("t", (replace(run, final={"grounding_gap": 0.01, "grounding_gap_sd": 0.002}),))) == []


def test_what_was_run_is_two_sentences_from_the_data():
    text = what_was_run(full())
    assert text == ("one and two were trained for 5 steps on drawn-train, which took 12 s and 12 s. "
                    "The numbers were measured on 64 pictures and 128 captions of drawn-test.")
    assert what_was_run(DemoReport("t", (Run("one"),))) == "one was trained. The numbers were measured on the evaluation set."


def test_terminal_and_page_show_the_same_numbers():
    report = full()
    numbers = re.findall(r"\d+\.\d+ (?:%|nats)|\d+ s\b", results_table(report).split("\n\n")[0])
    rows = re.search(r"<tbody>(.*?)</tbody>", page(report), re.S)[1].replace("&nbsp;", " ")
    assert re.findall(r"\d+\.\d+ (?:%|nats)|\d+ s\b", re.sub(r"<[^>]*>", " ", rows)) == numbers


def test_printing_to_a_pipe_and_to_a_terminal():
    pipe = io.StringIO()
    print_results(full(), pipe)
    assert pipe.getvalue() == results_table(full()) + "\n" and "\x1b" not in pipe.getvalue()
    pytest.importorskip("rich")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    print_results(replace(full(), title="[bold]not markup[/bold]\x1b[2J"), terminal)
    assert "60.0 %" in terminal.getvalue() and "A difference" not in terminal.getvalue()
    assert "[bold]not markup" in terminal.getvalue() and "\x1b[2J" not in terminal.getvalue()


def test_import_pulls_no_matplotlib():
    import subprocess
    import sys

    code = "import sys, sparc_ref.show.report, sparc_ref.show.plots, sparc_ref.run.measure"
    code += "; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
