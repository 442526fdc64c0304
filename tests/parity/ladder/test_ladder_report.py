"""The ladder's report: one results.json in four forms, readable, complete, and safe to open."""

import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

from parity.ladder import charts, report, sensitivity


def row(name="grad.v", side="trainer", dtype="float64", error=1e-16, budget=1e-15, **more):
    found = {"name": name, "side": side, "dtype": dtype, "error": error, "budget": budget, "where": "", "note": "",
             "must_leave": False, "proves": True, "notices": None, "count": 1, "blind": 0} | more
    left = found["error"] > found["budget"]
    return found | {"ok": left if found["must_leave"] else not left and not math.isnan(error)}


def rung(name="losses", status="passed", rows=(), **more):
    return {"name": name, "what": f"What {name} asks.", "status": status, "reason": "", "seconds": 1.25,
            "compared": 7 * len(rows), "blind": 0, "cannot": False, "notes": [], "rows": list(rows), "series": None} | more


def results(*rungs, failure=None, **more):
    return {"schema": 2, "sensitivity": [],
            "title": "Parity ladder", "passed": failure is None, "preset": "quick", "device": "cpu",
            "command": "python -m parity ladder", "started": "2026-01-02T03:04:05+0000", "seconds": 61.5,
            "settings": {"seed": 0, "threads": 1, "TF32": "off (CPU)"},
            "versions": {"sparc_ref": "0.1", "numpy": "2.4", "torch": "2.13"}, "rungs": list(rungs), "failure": failure} | more


GOOD = [row("similarity", error=2e-16), row("similarity", "reference", error=0.0),
        row("similarity", dtype="float32", error=1e-7, budget=1e-6), row("grad.v", dtype="mixed", error=0.01, budget=0.05)]
BAD = row("sparse", error=0.25, budget=2e-15, where="case fine_sigma_hit: entry (0, 0, 1): got 0, want 0.25")
SERIES = {"title": "loss", "y": "loss", "lines": {"reference": [4.0, 3.0, 2.5], "trainer": [4.0, 3.0, 2.6]},
          "band": [[3.9, 4.1], [2.9, 3.1], [2.3, 2.7]]}
BAND = rung("band", rows=[row("loss", dtype="float32", error=1e-7, budget=1e-5)], series=SERIES, notes=["one | with a bar"])
PASSED = results(rung(rows=GOOD), rung("compile", "not run", reason="no C++ compiler"), BAND)
FAULT = {"rung": "losses", "row": BAD, "float64": None, "verdict": "This is float64 already: a fault, not rounding."}
WORST = BAD | {"count": 7}          # what the rung keeps of all comparisons of this tensor
LATER = rung("band", "not run", reason="an earlier rung failed")
FAILED = results(rung(rows=[*GOOD, WORST], status="failed"), LATER, failure=FAULT)


class Strict(HTMLParser):
    """Tags that open and close in order; what is loaded from elsewhere."""

    VOID = ("meta", "br", "img", "line", "rect", "circle", "path", "polygon", "polyline", "link", "input")

    def __init__(self, page):
        super().__init__()
        self.open, self.seen, self.outside, self.text = [], [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        links = [value for name, value in attributes if name in ("src", "href")]
        self.outside += [link for link in links if not link.startswith(("#", "data:"))]
        assert not [name for name, _ in attributes if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def terminal(found):
    from rich.console import Console

    console = Console(file=io.StringIO(), width=80)
    report.terminal(found, console)
    return console.file.getvalue()


def test_the_four_files(tmp_path):
    paths = report.write(PASSED, tmp_path / "new" / "folder")
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == sorted(paths)
    assert json.loads(paths["results.json"].read_text()) == PASSED
    report.write(FAILED, tmp_path / "new" / "folder")
    assert json.loads(paths["results.json"].read_text())["failure"]["row"]["name"] == "sparse"


def test_json_holds_what_is_not_finite_and_numpys_numbers():
    odd = {"error": math.nan, "budget": math.inf, "where": -math.inf, "count": np.int64(3), "ok": np.bool_(True)}
    odd |= {"x": np.float32(0.5)}
    text = json.dumps(report.plain(odd), allow_nan=False)
    back = json.loads(text)
    assert back == {"error": "nan", "budget": "inf", "where": "-inf", "count": 3, "ok": True, "x": 0.5}
    assert math.isnan(report.number(back["error"])) and report.number(back["where"]) == -math.inf


@pytest.mark.parametrize(
    ("error", "budget", "share"), [(0, 0, 0), (1, 0, math.inf), (1, 2, 0.5), (math.nan, 1, math.inf), ("nan", 1, math.inf)]
)
def test_headroom(error, budget, share):
    assert report.headroom({"error": error, "budget": budget}) == share


def test_the_verdict_names_what_was_not_run():
    said = report.verdict(PASSED)
    assert said.startswith("Passed: 2 rungs, 35 comparisons") and "NOT RUN: compile" in said and "20% of it" in said
    said = report.verdict(FAILED)
    assert "Failed at losses: sparse (trainer, float64) is off by 2.5e-01, its budget is 2.0e-15" in said
    assert "fine_sigma_hit" in said and "NOT RUN: band" in said


def test_a_planted_error_that_was_not_seen():
    silent = row("TF32 on: grad.v", dtype="float32", error=1e-9, budget=1e-6, must_leave=True)
    assert not silent["ok"] and "was to leave its budget" in report.describe(silent)
    seen = row("TF32 on: grad.v", dtype="float32", error=1e-3, budget=1e-6, must_leave=True)
    assert "at 20%" in report.verdict(results(rung(rows=[*GOOD, seen])))  # it is not what came closest


@pytest.mark.parametrize("found", [PASSED, FAILED])
def test_terminal_and_markdown_say_the_same(found):
    shown, text = terminal(found), report.markdown(found)
    for cells in report.lines(found):
        table_line = next(line for line in text.splitlines() if line.startswith(f"| {cells[0]} "))
        assert [cell.strip() for cell in table_line.strip("|").split("|")] == cells
        assert all(cell in shown for cell in cells)
    assert report.verdict(found) in shown
    assert found["failure"] is None or found["failure"]["verdict"] in shown
    widths = {len(re.split(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")}
    assert widths == {10}


def test_each_cell_is_the_row_that_came_closest():
    cells = next(report.lines(results(rung(rows=[*GOOD, row("late", error=9e-16), row("mild", error=1e-14, budget=1e-12)]))))
    assert cells == ["losses", "42", "0", "9.0e-16 of 1.0e-15", "1.0e-07 of 1.0e-06", "1.0e-02 of 5.0e-02", "ok", "1 s"]
    assert next(report.lines(FAILED))[3] == "2.5e-01 of 2.0e-15"


AIMED = {"float64": (1e-12, "1e-12"), "float32": (1e-4, "1e-04"), "float16": (0.05, "5.0%"), "bfloat16": (0.05, "5.0%"),
         "mixed": (0.05, "5.0%")}


@pytest.mark.parametrize("dtype", AIMED)
def test_an_aim_is_met_up_to_it_and_missed_beyond(dtype):
    aim, text = AIMED[dtype]
    for share, said in ((0.9, "met by every gradient"), (1.1, "missed by the worst gradient of losses: grad.1 (trainer)")):
        rows = [row(f"grad.{i}", dtype=dtype, notices=x) for i, x in enumerate((aim / 10, share * aim))]
        assert sensitivity.remarks(sensitivity.table([rung(rows=rows)]))[0].startswith(f"{dtype}, aim {text}: {said}")


def test_what_is_noticed_stands_under_its_own_precision():
    """Median and worst of gradients that differ; zeros, what failed and what is no gradient left out."""
    seen = [row(f"grad.{i}", notices=x) for i, x in enumerate((4e-15, 1e-15, 2e-13, math.nan, math.nan))]
    seen += [row(f"grad.{i}", "reference", "bfloat16", 0.01, 0.1, notices=x) for i, x in enumerate((0.0015, math.inf, 0.012))]
    seen += [row("grad.late", dtype="float32", error=1.0, notices=0.5), row("loss")]
    found = sensitivity.table([rung(rows=seen), rung("steps", rows=[row("grad.0", dtype="float32", notices=2e-5)])])
    assert found[0] == {"rung": "losses", "dtype": "float64", "gradients": 3, "zero": 2, "median": 4e-15, "worst": 2e-13,
                        "name": "grad.2", "side": "trainer"}
    assert (found[1]["worst"], found[1]["name"], found[1]["side"]) == (math.inf, "grad.1", "reference")
    said = results(rung(rows=seen), sensitivity=found)
    for text in (terminal(said), report.markdown(said), " ".join(Strict(report.page(said)).text)):
        assert re.search(r"losses\W+4e-15; 2e-13\W+1\.2%; none", text) and re.search(r"steps\W+2e-05; 2e-05", text)
        assert "2 gradients are exactly zero" in text
    assert sensitivity.HEAD == ["rung", "float64", "float32", "float16", "bfloat16", "mixed"]
    assert sensitivity.cells(found) == [["losses", "4e-15; 2e-13", "", "", "1.2%; none", ""],
                                        ["steps", "", "2e-05; 2e-05", "", "", ""]]


@pytest.mark.parametrize("found", [PASSED, FAILED])
def test_junit_counts_what_failed_and_what_was_not_run(found):
    suites = ElementTree.fromstring(report.junit(found).encode())
    for suite, rung in zip(suites, found["rungs"], strict=True):
        failures, skipped = suite.findall("testcase/failure"), suite.findall("testcase/skipped")
        assert int(suite.get("tests")) == len(suite.findall("testcase")) and int(suite.get("failures")) == len(failures)
        assert len(failures) == sum(not r["ok"] for r in rung["rows"]) and len(skipped) == (rung["status"] == "not run")
        assert {p.get("name") for p in suite.find("properties")} >= {"seed", "TF32", "torch", "device"}
    if found is FAILED:
        failure = suites.find("testsuite/testcase/failure")
        assert "fine_sigma_hit" in failure.get("message") and "a fault, not rounding" in failure.text


@pytest.mark.parametrize("found", [PASSED, FAILED])
def test_the_page_is_one_file_and_says_all(found):
    page = Strict(report.page(found))
    assert "script" not in page.seen and not page.outside and page.seen.count("svg") == (4 if found is PASSED else 2)
    text = " ".join(page.text)
    for word in ("seed", "TF32", "off (CPU)", "torch 2.13", "2026-01-02T03:04:05", report.verdict(found)):
        assert word in text
    assert "default-src 'none'" in report.page(found)


def test_a_failed_tensor_stands_first_and_in_red():
    svg = charts.errors(FAILED["rungs"][0]["rows"], BAD)
    names = re.findall(rf'<text x="{charts.LEFT - 2}"[^>]*fill="([^"]+)"[^>]*>([^<]+)<', svg)
    assert names == [(charts.FAILED, "sparse"), (charts.INK, "similarity"), (charts.INK, "grad.v")]
    assert ">float64: 0.25<" in svg
    page = report.page(FAILED)
    assert page.index('class="verdict failed"') < page.index("<table") and "a fault, not rounding" in page


def test_the_axis_is_honest():
    """A factor of a hundred is one and the same distance everywhere; 0 has a place of its own; the budget's stroke is right."""
    rows = [row(f"e{k}", error=10.0**k, budget=10.0 ** (k + 1)) for k in range(-16, -2)] + [row("none", error=0.0)]
    svg = charts.errors(rows)
    at = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', svg)]
    steps = np.diff(at[:-1])
    assert np.all(steps > 10) and np.ptp(steps) <= 0.21 and at[-1] < at[0] - 10
    upright = re.findall(r'<line x1="([\d.]+)" y1="[\d.]+" x2="\1" y2="[\d.]+" stroke="[^"]+" stroke-width="2"/>', svg)
    assert np.allclose([float(x) for x in upright[:-1]], np.array(at[:-1]) + steps[0], atol=0.21)


@pytest.mark.parametrize("error", [math.nan, math.inf, 1e30, 5e-324])
def test_odd_numbers_stay_on_the_page(error):
    svg = charts.errors([row(error=error), row("other")])
    at = [float(x) for x in re.findall(r' c?x1?="(-?[\d.]+)"', svg)]
    assert min(at) >= 0 and max(at) <= charts.WIDTH
    assert "nan" not in re.sub(r"<title>.*?</title>", "", svg)


def test_texts_are_escaped_everywhere(tmp_path):
    nasty = '<script>alert("1")</script> & | \x00 \ud800'
    found = results(rung(nasty, rows=[row(nasty, where=nasty, error=1.0)], status="failed", notes=[nasty]),
                    failure={"rung": nasty, "row": row(nasty, error=1.0), "float64": None, "verdict": nasty},
                    settings={"seed": nasty}, versions={"torch": nasty}, command=nasty)
    assert "script" not in Strict(report.page(found)).seen
    ElementTree.fromstring(report.junit(found).encode())
    lines = [line for line in report.markdown(found).splitlines() if line.startswith("|")]
    assert all(len(re.split(r"(?<!\\)\|", line)) == 10 for line in lines)
    report.write(found, tmp_path)


def test_curves_without_a_band_and_of_one_value():
    for series in ({"title": "t", "y": "loss", "lines": {"a": [1.0]}}, {"title": "t", "y": "y", "lines": {}, "band": None},
                   {"title": "t", "y": "y", "lines": {"a": [math.nan, 2.0]}, "band": [[1.0, 3.0], [1.0, 3.0]]}):
        assert charts.curves(series).startswith("<svg") and charts.curves(series).endswith("</svg>")


def test_the_overview_shows_each_rung_by_what_came_closest():
    """A bar's length is the share of the budget; what failed is red and beyond it; what was not run has no bar, and says so."""
    seen = row("TF32 on: grad.v", dtype="float32", error=1e-3, budget=1e-6, must_leave=True)
    silent = seen | {"error": 0.0, "ok": False}
    found = results(rung(rows=[*GOOD, seen]), rung("compile", "not run", reason="no C++ compiler"), BAND,
                    rung("bad", "failed", rows=[*GOOD, BAD]), rung("blind", "failed", rows=[silent]))
    rungs = report.closest(found)
    assert [r["name"] for r in rungs] == ["losses", "compile", "band", "bad", "blind"]
    assert [r["share"] for r in rungs] == [pytest.approx(0.2), None, pytest.approx(0.01), pytest.approx(0.25 / 2e-15), 0]
    assert [r["ok"] for r in rungs] == [True, True, True, False, False]
    svg = charts.overview(rungs)
    bars = re.findall(r'<rect x="(\d+)" y="\d+" width="([\d.]+)" height="14" fill="([^"]+)"', svg)
    edge = float(re.search(r'<text x="([\d.]+)" [^>]*>the budget<', svg).group(1)) - float(bars[0][0])
    assert [colour == charts.FAILED for _, _, colour in bars] == [False, False, True, True]
    assert [float(width) / edge for _, width, _ in bars] == [pytest.approx(0.2, abs=1e-3), pytest.approx(0.01, abs=1e-3),
                                                             pytest.approx(1.06, abs=1e-3), pytest.approx(0, abs=0.01)]
    assert ">20%: similarity, float64<" in svg and ">not run<" in svg and "sparse (trainer, float64) is off by 2.5e-01" in svg
    page = report.page(found)
    assert page.index("the budget<") < page.index("<table")
    Strict(page)


def test_every_colour_is_the_pages(tmp_path):
    """Pictures follow the page from light to dark: no colour in them but its variables, and each is set for both."""
    text = report.page(FAILED) + report.page(PASSED)
    used = set(re.findall(r"var\((--[a-z0-9-]+)", text))
    light, dark = (set(re.findall(r"(--[a-z0-9-]+):", part)) for part in report.STYLE.split("prefers-color-scheme: dark")[:2])
    assert used <= light and used <= dark
    for svg in re.findall(r"<svg.*?</svg>", text):
        assert not re.search(r'"#[0-9a-fA-F]{3,6}"', svg)


def contrast(a, b):
    """WCAG: from 1, no difference, to 21."""
    def luminance(colour):
        colour = "".join(c * 2 for c in colour[1:]) if len(colour) == 4 else colour[1:]
        parts = np.array([int(colour[i:i + 2], 16) / 255 for i in (0, 2, 4)])
        return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_axes_and_texts_are_seen(scheme):
    """Texts have the contrast that WCAG asks of them (4.5), axes and marks that of graphics (3); grid lines can be made out."""
    colour = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]+)", report.STYLE.split("prefers-color-scheme: dark")[scheme]))
    paper = colour["paper"]
    for name in ("ink", "soft", "failed", "float64", "float32", "bits16", "link", "part"):
        assert contrast(colour[name], paper) >= 4.5, name
    assert contrast(colour["axis"], paper) >= 4.5 and contrast(colour["grid"], paper) >= 1.7
    for name in ("alarm", "good-paper", "part-paper", "stripe"):
        assert contrast(colour["ink"], colour[name]) >= 7, name
    assert contrast(colour["failed"], colour["alarm"]) >= 4.5


def test_facts_outcomes_and_notes_are_their_own():
    found = results(rung("losses", rows=GOOD, notes=["a first note", "another"]), rung("steps", "failed", [BAD]),
                    rung("compile", "not run", reason="no compiler"))
    assert report.facts(found).startswith("preset quick, device cpu, seed 0, threads 1, TF32 off (CPU), sparc_ref 0.1, ")
    assert [cells[report.OUTCOME] for cells in report.lines(found)] == ["ok", "FAILED", "NOT RUN"]
    for text in (terminal(found), report.markdown(found), " ".join(Strict(report.page(found)).text)):
        for said in ("losses: a first note", "losses: another", "NOT RUN: compile: no compiler"):
            assert said in text


def test_a_mark_has_its_sides_form_and_a_bar_its_precisions_colour():
    marks = re.findall(r'<title>\w+, (\w+), [^<]*</title>.*?<circle[^>]* fill="([^"]+)"', charts.errors(GOOD[:2]))
    assert [(side, fill == charts.PAPER) for side, fill in marks] == [("trainer", False), ("reference", True)]
    kinds = ("float64", "float32", "bfloat16", "mixed")
    bars = charts.overview([{"name": d, "said": "", "share": 0.5, "dtype": d, "ok": True} for d in kinds])
    fills = re.findall(r'height="14" fill="([^"]+)"', bars)
    assert fills == [charts.COLOURS[name] for name in ("float64", "float32", "16-bit", "16-bit")] and len(set(fills)) == 3


def test_updates_are_counted_from_one():
    assert re.findall(r'y="295" text-anchor="middle"[^>]*>(\d+)<', charts.curves(SERIES)) == ["1", "1", "2", "2", "3", "3"]
