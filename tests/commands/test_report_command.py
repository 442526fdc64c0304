"""The page of any run: whose it is, where it goes, what it says of where its numbers come from."""

import importlib
import json
import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from pages import Tables

from sparc_ref.commands import cli
from sparc_ref.commands.report import home, measure, report, runs_in, same, training_seconds
from sparc_ref.data import DrawnScenes, WordTokenizer
from sparc_ref.model import PRESETS
from sparc_ref.objectives.chosen import ObjectiveConfig
from sparc_ref.run import checkpoint
from sparc_ref.run.measure import evaluate
from sparc_ref.run.rundir import load_run, read_metrics
from sparc_ref.run.sources import remembered
from sparc_ref.run.train import SPARC, TrainConfig, train
from sparc_ref.show.results import NUMBERS


@pytest.fixture(autouse=True)
def quick_figures(monkeypatch):
    """Figures are drawn, but not turned into pixels, which takes most of the time."""
    monkeypatch.setattr("sparc_ref.show.plots.png", lambda figure, dpi=150: b"PNG")


def make(out, size=16, spec="drawn?style=short&count=9", objective=SPARC, **changes):
    data = DrawnScenes(size=size, count=9, style="short")
    tokenizer = WordTokenizer(data.vocabulary())
    config = replace(PRESETS["tiny"], image_size=size, vision_width=16, vision_depth=1, text_width=16, text_depth=1,
                     vocab_size=tokenizer.vocab_size, max_tokens=12, **changes)
    train(config, TrainConfig(steps=2, batch=4, eval_every=0, checkpoint_every=1, warmup=1), [data], tokenizer, out,
          validation={"own": data}, sources=remembered([spec]) | {"command": "sparc-ref train --data " + spec},
          say=lambda text: None, objective=objective)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make(tmp_path_factory.mktemp("runs") / "mine")


def quiet(*args, **options):
    return report(*args, **options, say=lambda text: None).read_text()


def test_the_numbers_are_those_of_the_data_that_the_run_remembers(run, capsys):
    page = quiet([run])
    assert (run / "report.html").read_text() == page and "mine on drawn-test" in page
    params, config, tokenizer, _ = load_run(run)
    numbers = evaluate(params, config, DrawnScenes("test", 16, 9, style="short"), tokenizer, shards=4)
    shown = capsys.readouterr().out
    for key in ("t2i_r1", "pointing", "miou"):
        assert f"{100 * numbers[key]:.1f} %" in shown and f"{100 * numbers[key]:.1f}&nbsp;%" in page
    assert f"sparc-ref train --data drawn?style=short&amp;count=9 --out {run}" in page and "sparc-ref report" in page
    assert "Grounding gap" in page and "metrics.jsonl" in page
    page = quiet([run], data=["drawn?style=short"], limit=4)
    assert "4 pictures and 4 captions" in page
    assert f"sparc-ref report {run} --data &#x27;drawn?style=short&#x27; --limit 4" in page


def test_several_runs_side_by_side_whatever_their_size(run, tmp_path):
    other = make(tmp_path / "mine", size=32, lambda_f=0.0)        # the same name, elsewhere
    page = quiet([run, other], out=tmp_path / "both.html", data=["drawn?count=5"])
    assert (tmp_path / "both.html").exists() and f"{other}</th>" in page and "lambda_f ≠" in page
    assert "5 pictures and 5 captions" in page
    rows = {row[0].removesuffix(" ≠"): row[1:] for table in Tables(page).tables[1:] for row in table if len(row) == 3}
    assert rows["size"] == ["16", "16"], "both of the first run"
    assert f"sparc-ref train --data drawn?style=short&amp;count=9 --out {run}" in page, "wherever the page lies"


def test_each_run_is_measured_and_shown_under_its_own_objective(run, tmp_path, monkeypatch):
    """Whichever comes first; its settings stand in its own column, and its files, curves and time are its own."""
    objective = ObjectiveConfig("pacl", pacl_weight_scale=3.0)
    other, asked = make(tmp_path / "other", objective=objective), []
    for room, name, place in (("measure", "evaluate", "objective"), ("examples", "explain_examples", "objective")):
        module = importlib.import_module(f"sparc_ref.run.{room}")
        real = getattr(module, name)

        def watched(*args, _real=real, _name=name, _place=place, **how):
            asked.append((_name, args[0], how[_place]))
            return _real(*args, **how)

        monkeypatch.setattr(module, name, watched)
    page = quiet([run, other], out=tmp_path / "both.html", data=["drawn?style=short&count=4"])
    mine, theirs = (load_run(folder)[0] for folder in (run, other))
    for name, params, under in asked:
        own = mine if under == ObjectiveConfig() else theirs
        assert under in (ObjectiveConfig(), objective) and params.keys() == own.keys(), name
        assert all(np.array_equal(params[n], p) for n, p in own.items()), name
    assert {(name, under == objective) for name, _, under in asked} >= {
        ("evaluate", False), ("evaluate", True), ("explain_examples", False), ("explain_examples", True)}
    rows = {row[0].removesuffix(" ≠"): row[1:] for table in Tables(page).tables[1:] for row in table}
    assert rows["objective"] == ["–", "pacl"] and rows["pacl_weight_scale"] == ["–", "3.0"] and rows["steps"] == ["2", "2"]
    for name, folder in (("mine", run), ("other", other)):
        for what, file in (("metrics", "metrics.jsonl"), ("configuration", "config.json"),
                           ("checkpoint", "checkpoints/step_00000002")):
            assert rows[f"{name}: {what}"] == [os.path.relpath(folder / file, tmp_path)]
    seconds = [np.mean([row["seconds"] for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "train"]) * 2
               for folder in (run, other)]
    assert [row[1:3] for row in Tables(page).tables[0] if row[0] == "training time"] == [[f"{x:.0f} s" for x in seconds]]


def test_the_time_of_a_training_is_that_of_its_updates():
    """Of all of them, from those that were logged; what evaluations took is not in it."""
    rows = [{"kind": "train", "step": 5, "seconds": 2.0}, {"kind": "eval", "step": 5, "seconds": 100.0},
            {"kind": "skipped", "step": 7}, {"kind": "train", "step": 9, "seconds": 4.0}]
    assert training_seconds(rows) == 27.0 and training_seconds(rows[1:3]) == 0.0


def test_what_was_trained_on_and_what_is_measured_are_told_apart(run):
    """The first of the data is what is shown whole, whatever follows it."""
    page = quiet([run], data=["drawn?style=short&split=validation&count=5", "mosaic?count=4"])
    rows = {row[0].removesuffix(" ≠"): row[1:] for table in Tables(page).tables[1:] for row in table if len(row) == 3}
    assert rows["name"] == ["drawn-train", "drawn-validation"] and rows["count"] == ["9", "5"]
    assert "mine on drawn-validation" in page and "5 pictures and 5 captions of drawn-validation" in page


def test_further_data_is_named_and_has_its_own_numbers(run):
    specs = ["drawn?style=short&count=5", "drawn?style=short&split=unseen&count=6"]
    page = quiet([run], data=specs)
    rows = Tables(page).tables[0]
    at = [row[0] for row in rows].index(specs[1])
    params, config, tokenizer, _ = load_run(run)
    one, two = (evaluate(params, config, DrawnScenes(split, 16, count, style="short"), tokenizer)
                for split, count in (("test", 5), ("unseen", 6)))
    shown = {row[0]: row[1:] for row in rows[at + 1:] if len(row) > 1}
    labels = {n.key: n.label for n in NUMBERS}
    for key in ("t2i_r1", "i2t_r1", "pointing"):
        assert shown[labels[key]] == [f"{100 * two[key]:.1f} %", f"{100 * two[f'{key}_chance']:.1f} %"], key
        assert [labels[key], f"{100 * one[key]:.1f} %", f"{100 * one[f'{key}_chance']:.1f} %"] in rows[:at], key
    assert "5 pictures and 5 captions of drawn-test" in page
    data = {row[0].removesuffix(" ≠"): row[1:] for table in Tables(page).tables[1:] for row in table if len(row) == 3}
    assert data["split"] == ["train", "test"] and data["count"] == ["9", "5"]


@pytest.mark.parametrize("spec, size, limit, wanted", [
    ("drawn", 3000, None, 1000), ("drawn", 30, None, 30), ("drawn", 3000, 7, 7), ("captions:x", 3000, None, 3000),
    ("captions:x", 3000, 7, 7)])
def test_how_many_are_measured(monkeypatch, spec, size, limit, wanted):
    asked = []
    monkeypatch.setattr("sparc_ref.run.measure.evaluate", lambda *args, **how: asked.append(args[4]))
    measure(None, None, None, spec, range(size), limit)
    assert asked == [wanted]


def test_a_number_repeats_another_where_its_chance_does_too():
    final = {"a": 0.5, "b": 0.5, "c": 0.5, "a_chance": 0.1, "b_chance": 0.1, "c_chance": 0.2}
    assert same(final, "a", "b") and not same(final, "a", "c") and not same(final | {"b": 0.51}, "a", "b")


def test_a_checkpoint_keeps_its_folder_clean(run, tmp_path):
    first, last = checkpoint.steps(run / "checkpoints")
    assert list(runs_in(first)) == ["mine step_00000001"] and home(first) == home(last) == home(run) == run
    (run / "report.html").unlink(missing_ok=True)
    quiet([first])
    assert (run / "report.html").exists() and not (first / "report.html").exists()
    checkpoint.load(first)
    alone = tmp_path / "step_00000002"
    shutil.copytree(last, alone)
    page = quiet([alone])                                         # without metrics: no curves, no time, all else
    assert (tmp_path / "report.html").exists() and "Learning curves" not in page and "training time" not in page


def test_memory_is_called_memory(tmp_path):
    from PIL import Image

    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "photos" / "captions.jsonl").write_text("\n".join(json.dumps({"image": f"{i}.png", "caption": f"a {i}"})
                                                                 for i in range(4)))
    make(tmp_path / "run", spec=f"captions:{tmp_path}/photos")
    page = quiet([tmp_path / "run"])
    assert "4 pictures and 4 captions of photos. The model was trained on them" in page and "Predicted and true" not in page
    assert "trained on them" not in quiet([tmp_path / "run"], data=["drawn?style=short&count=4"])


def test_what_cannot_be_reported(run, tmp_path, capsys):
    for argv, words in ((["report", str(tmp_path)], "holds no checkpoint"),
                        (["report", str(tmp_path / "no")], "no such directory"),
                        (["report", str(run), "--out", str(tmp_path / "no" / "page.html")], "--out: expected a file"),
                        (["report", str(run), "--limit", "0"], "at least one example"),
                        (["report", str(run), "--data", "drwan"], "did you mean drawn?"),
                        (["report"], "")):
        try:
            status = cli.run(argv)
        except SystemExit as stop:
            status = stop.code
        err = capsys.readouterr().err
        assert status == 2 and words in err and not re.search("Traceback", err)
    assert not list(tmp_path.iterdir())
