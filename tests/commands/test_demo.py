"""The demo, end to end with a few steps."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from sparc_ref.commands import demo as d
from sparc_ref.commands import report
from sparc_ref.run import checkpoint
from sparc_ref.run import train as loop
from sparc_ref.run.train import Interrupted

QUICK = d.DemoConfig(steps=2, examples=8, checkpoint_every=1)
pytestmark = pytest.mark.usefixtures("tiny_recipe")


@pytest.fixture
def quick_figures(monkeypatch):
    """Figures are drawn, but not turned into pixels, which takes most of a report's time."""
    monkeypatch.setattr("sparc_ref.show.plots.png", lambda figure, dpi=150: b"PNG")


def test_writes_everything_and_is_resumed(tmp_path, capsys):
    said = []
    path = d.demo(replace(QUICK, out=tmp_path), say=said.append)
    assert path == tmp_path / "report.html" and path.stat().st_size > 100_000
    page = path.read_text()
    assert "http" not in page.split("<body>")[1].replace("http-equiv", "")[:2000]
    assert "come from one run of each model" in page             # no spread is known of this recipe
    for key in d.MODELS:
        assert {p.name for p in (tmp_path / key).iterdir()} >= {"config.json", "metrics.jsonl", "checkpoints", "final.json"}
        final = json.loads((tmp_path / key / "final.json").read_text())
        assert {"t2i_r1", "pointing", "miou", "grounding_gap", "seconds"} <= set(final)
    table = capsys.readouterr().out
    assert "SPARC" in table and "global loss only" in table and "chance" in table
    assert str(path) in said[-1]
    with pytest.raises(ValueError, match="--resume"):
        d.demo(replace(QUICK, out=tmp_path))
    weights = checkpoint.load(tmp_path / "sparc").params
    d.demo(replace(QUICK, out=tmp_path, resume=True), say=said.append)
    for name, x in checkpoint.load(tmp_path / "sparc").params.items():
        np.testing.assert_array_equal(x, weights[name])


@pytest.mark.parametrize("data", [pytest.param(x, marks=pytest.mark.slow if x == "drawn" else ()) for x in report.SPREADS])
def test_report_writes_the_same_page_again(tmp_path, quick_figures, data):
    """The demo's folder stands for both of its runs; measured anew, every number is the one that the demo found."""
    path = d.demo(replace(QUICK, out=tmp_path, data=data), say=lambda text: None)
    first = path.read_text()
    path.unlink()
    assert report.report([tmp_path], say=lambda text: None) == path

    def cells(page):
        return [cell for cell in re.findall(r"<td.*?</td>", page) if "%" in cell or "nats" in cell]
    assert len(cells(first)) > {"mosaic": 40, "drawn": 50}[data] and cells(path.read_text()) == cells(first)
    assert ("Unseen colour-shape pairs" in path.read_text()) == (data == "drawn")
    assert ("a ground without a name" in first) == (data == "drawn") and ("(h_v none)" in first) == (data == "mosaic")


def test_both_models_start_alike_and_see_the_same_batches(tmp_path, monkeypatch, quick_figures):
    seen = []
    real = loop.forward

    def watch(params, images, tokens, mask, config, shards):
        seen.append((config.lambda_f, {k: x.copy() for k, x in params.items()}, images.copy(), tokens.copy()))
        return real(params, images, tokens, mask, config, shards)
    monkeypatch.setattr(loop, "forward", watch)
    d.demo(replace(QUICK, out=tmp_path), say=lambda text: None)
    sparc, globe = seen[:2], seen[2:]
    assert [s[0] for s in seen] == [sparc[0][0]] * 2 + [0.0] * 2 and sparc[0][0] > 0
    for name in sparc[0][1]:
        np.testing.assert_array_equal(sparc[0][1][name], globe[0][1][name])
    for a, b in zip(sparc, globe):
        np.testing.assert_array_equal(a[2], b[2])
        np.testing.assert_array_equal(a[3], b[3])


def test_an_interrupted_demo_continues(tmp_path, monkeypatch, quick_figures):
    real = d.train

    def stop_at_global(*args, **kwargs):
        if args[0].lambda_f == 0:
            raise Interrupted("stopped")
        return real(*args, **kwargs)
    monkeypatch.setattr(d, "train", stop_at_global)
    with pytest.raises(Interrupted):
        d.demo(replace(QUICK, out=tmp_path), say=lambda text: None)
    assert not (tmp_path / "report.html").exists()
    monkeypatch.setattr(d, "train", real)
    assert d.demo(replace(QUICK, out=tmp_path, resume=True), say=lambda text: None).exists()


def test_seeds_give_a_spread(tmp_path, monkeypatch, capsys, quick_figures):
    d.demo(replace(QUICK, out=tmp_path, seeds=2), say=lambda text: None)
    measured = json.loads((tmp_path / "seeds.json").read_text())
    assert len(measured["finals"]) == 2 and measured["command"].endswith("--seeds 2 --steps 2 --examples 8")
    mean, sd, n = measured["spread"]["sparc"]["pointing"]
    values = [f["sparc"]["pointing"] for f in measured["finals"]]
    assert n == 2 and mean == pytest.approx(np.mean(values)) and sd == pytest.approx(np.std(values, ddof=1))
    assert "±" in capsys.readouterr().out


def test_a_spread_belongs_to_its_recipe(tmp_path, capsys, quick_figures):
    """It is shown beside runs of the very recipe that it was measured with, whatever their seed, with where it comes from."""
    seeds = d.seeds_summary(QUICK, [{key: {"pointing": x, "images": 8.0} for key in d.MODELS} for x in (0.2, 0.4)])
    d.demo(replace(QUICK, out=tmp_path / "a", seed=3), say=lambda text: None)
    capsys.readouterr()
    for key, (name, _) in d.MODELS.items():
        record = json.loads((tmp_path / "a" / key / "config.json").read_text())
        assert report.spread_of(record, 8, seeds)["pointing"] == (pytest.approx(0.3), pytest.approx(0.1414, abs=1e-4), 2)
        assert not report.spread_of(record, 7, seeds) and not report.spread_of(record, 8, {})
        for part, name, value in (("train", "lr", 1.0), ("model", "lambda_g", 1.0), ("data", "0:mosaic-train", {}),
                                  ("tokenizer", "", "another")):
            other = record | {part: record[part] | {name: value} if name else value}
            assert not report.spread_of(other, 8, seeds), part
    report.write_page(tmp_path / "page.html", report.runs_in(tmp_path / "a"), seeds=seeds, say=lambda text: None)
    shown = capsys.readouterr().out
    assert "30.0 ± 14.1 % (2)" in shown and report.origin(seeds) in shown and seeds["command"] in shown
    assert seeds["measured"] in shown and "measured on" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("data", report.SPREADS)
def test_the_shipped_spread_is_the_demos(data):
    """It says where it comes from and how its numbers arise, and was measured with the demo as it is."""
    measured = report.shipped_spread(data)
    assert {"recipe", "spread", "command", "sparc_ref", "machine", "finals", "measured"} <= set(measured)
    for key in d.MODELS:
        for name, (mean, sd, n) in measured["spread"][key].items():
            values = [f[key][name] for f in measured["finals"]]
            assert n == len(values) and mean == pytest.approx(np.mean(values)) and sd == pytest.approx(np.std(values, ddof=1))


@pytest.mark.parametrize("data", report.SPREADS)
def test_the_shipped_spread_belongs_to_the_demo_as_it_is(monkeypatch, data):
    """Whoever changes the recipe, or a setting of any model, measures it anew or drops it."""
    monkeypatch.undo()
    measured, config = report.shipped_spread(data), d.DemoConfig(data=data)
    assert d.recipe_of(config) == measured["recipe"]
    seeds = len(measured["finals"])
    assert measured["command"] == d.seeds_summary(replace(config, seeds=seeds), measured["finals"])["command"]
