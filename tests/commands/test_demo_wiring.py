"""The demo with two seeds: whose weights, whose scenes, whose numbers; every cell, panel and picture of its report.

Everything is computed again from the checkpoints that it left.
"""

import contextlib
import io
import json
import platform
import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from pages import Tables, figures_asked_for, numbers_in, written, written_spread

pytest.importorskip("matplotlib")

from sparc_ref.commands import demo as d
from sparc_ref.commands.report import spread_of
from sparc_ref.data import DrawnScenes, MosaicScenes
from sparc_ref.evaluate.grouping import patch_cover
from sparc_ref.run.examples import explain_examples
from sparc_ref.run.measure import evaluate
from sparc_ref.run.rundir import load_run, read_metrics
from sparc_ref.show.results import NUMBERS

SEEDS, STEPS, EXAMPLES = (4, 5), 3, 9
NAMES = {"sparc": "SPARC", "global": "global loss only"}
WORLDS = {"mosaic": partial(MosaicScenes, size=48), "drawn": partial(DrawnScenes, style="short")}
SPLITS = {"mosaic": {"test": ""}, "drawn": {"test": "", "unseen": "unseen_"}}


@pytest.fixture(scope="module", params=WORLDS)
def ran(request, tmp_path_factory):
    """The demo, its recipe with small sizes; what train() was given; what figures were asked for; what was printed."""
    out, said, given, handed, recipe, train = tmp_path_factory.mktemp("demo"), [], [], [], d.recipe, d.train
    printed = io.StringIO()

    def small(config):
        scenes, validation, tokenizer, model, training = recipe(config)
        model = replace(model, vision_width=16, vision_depth=1, text_width=16, text_depth=1)
        training = replace(training, batch=4, eval_limit=8, lr=0.02, warmup=1, log_every=2)
        return replace(scenes, count=64), replace(validation, count=8), tokenizer, model, training

    def watched(model, training, datasets, tokenizer, folder, **how):
        given.append((model, training, list(datasets), folder, how["validation"]))
        handed.append((how["again"], how["resume"], how["overwrite"]))
        return train(model, training, datasets, tokenizer, folder, **how)

    with pytest.MonkeyPatch.context() as patch, figures_asked_for() as figures, contextlib.redirect_stdout(printed):
        patch.setattr(d, "recipe", small)
        patch.setattr(d, "train", watched)
        page = d.demo(d.DemoConfig(out=out, seed=SEEDS[0], seeds=2, steps=STEPS, examples=EXAMPLES, checkpoint_every=STEPS,
                                   data=request.param, resume=request.param == "mosaic", overwrite=request.param == "drawn"),
                      again="the command", say=said.append)
    folders = {(s, key): out / f"seed_{s:02d}" / key for s in SEEDS for key in NAMES}
    return SimpleNamespace(
        world=request.param, scenes=WORLDS[request.param], out=out,
        page=page.read_text(encoding="utf-8"), printed=printed.getvalue(), given=given, handed=handed, figures=figures,
        said=said,
        folders=folders, runs={who: load_run(folder) for who, folder in folders.items()},
        finals={who: json.loads((folder / "final.json").read_text()) for who, folder in folders.items()},
    )


def test_each_model_is_trained_on_training_scenes_and_validated_on_others(ran):
    assert [folder for *_, folder, _ in ran.given] == list(ran.folders.values())
    for (seed, key), (model, training, datasets, _, validation) in zip(ran.folders, ran.given, strict=True):
        assert (model.lambda_f > 0) == (key == "sparc") and model.lambda_g > 0 and training.seed == seed
        assert ran.runs[seed, key][1] == model
        (scenes,) = datasets
        (checks,) = validation.values()
        assert scenes == ran.scenes("train", count=64) and checks == ran.scenes("validation", count=8)
        params, _, tokenizer, _ = ran.runs[seed, key]
        last = [row for row in read_metrics(ran.folders[seed, key] / "metrics.jsonl") if row["kind"] == "eval"][-1]
        numbers = evaluate(params, model, checks, tokenizer, seed=seed)
        assert all(last[name] == pytest.approx(x, rel=1e-4, abs=1e-5) for name, x in numbers.items())


TITLES = {"mosaic": ("SPARC on mosaics: every region has a name", "neither is read through a head that it did not train"),
          "drawn": ("SPARC on drawn scenes: objects on a ground without a name", "is in docs/learning.md")}
SPECS = {"mosaic": "mosaic?", "drawn": "drawn?style=short&"}


def test_what_is_said_and_remembered_is_of_this_demo(ran):
    """Each model by its name and seed, in order; each run with its own data, how to go on, and what it is measured on."""
    assert [line for line in ran.said if line.startswith("---")] == [f"--- {NAMES[key]}, seed {s}" for s, key in ran.folders]
    assert ran.said[-1].endswith(f"Open {ran.out / 'report.html'}")
    for world, words in TITLES.items():
        assert all((text in ran.page) == (world == ran.world) for text in words)
    assert ran.handed == [("the command", ran.world == "mosaic", ran.world == "drawn")] * 4
    for (seed, _), folder in ran.folders.items():
        record = json.loads((folder / "config.json").read_text())
        assert record["sources"] == {"data": [SPECS[ran.world][:-1]], "measured": {
            prefix.strip("_"): f"{SPECS[ran.world]}split={split}&count={EXAMPLES}"
            for split, prefix in SPLITS[ran.world].items()}}
        assert (record["train"]["seed"], record["train"]["checkpoint_every"], record["train"]["steps"]) == (seed, STEPS, STEPS)


def test_final_numbers_are_those_of_test_scenes_and_of_unseen_pairs(ran):
    """Measured: float32 sums in another order move them by 1e-6."""
    for (seed, key), final in ran.finals.items():
        params, model, tokenizer, _ = ran.runs[seed, key]
        wanted = {}
        for split, prefix in SPLITS[ran.world].items():
            numbers = evaluate(params, model, ran.scenes(split, count=EXAMPLES), tokenizer)
            wanted |= {prefix + name: x for name, x in numbers.items()}
        assert final.keys() == {*wanted, "seconds"}
        for name, x in wanted.items():
            assert final[name] == pytest.approx(x, rel=1e-4, abs=1e-5), (seed, key, name)
        rows = [row for row in read_metrics(ran.folders[seed, key] / "metrics.jsonl") if row["kind"] == "train"]
        assert [row["step"] for row in rows] == [2, 3], "of three updates two are logged"
        assert final["seconds"] == pytest.approx(np.mean([row["seconds"] for row in rows]) * 3)
    assert len({round(final["fine_loss"], 3) for final in ran.finals.values()}) == 4, "the case can tell"


def test_the_spread_is_that_of_the_model(ran):
    measured = json.loads((ran.out / "seeds.json").read_text())
    assert measured["finals"] == [{key: ran.finals[s, key] for key in NAMES} for s in SEEDS]
    for key in NAMES:
        for name, (mean, sd, n) in measured["spread"][key].items():
            values = [ran.finals[s, key][name] for s in SEEDS]
            assert (mean, sd, n) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)), 2), name
    assert measured["command"] == (f"sparc-ref demo{' --data drawn' * (ran.world == 'drawn')} --seed {SEEDS[0]} --seeds 2 "
                                   f"--steps {STEPS} --examples {EXAMPLES}")
    assert measured["recipe"]["examples"] == EXAMPLES, "a spread is that of so many examples"
    record = ran.runs[SEEDS[1], "global"][3].record["config"]
    assert spread_of(record, EXAMPLES, measured) == {name: tuple(x) for name, x in measured["spread"]["global"].items()}
    assert spread_of(record, EXAMPLES + 1, measured) == {}


def cells(ran):
    """(key, [value, value], [spread, spread], chance) of every row, from the finals of the first seed."""
    first = [ran.finals[SEEDS[0], key] for key in NAMES]
    keys = [n.key for n in NUMBERS[:-1]] + [f"unseen_{k}" for k in ("t2i_r1", "i2t_r1", "pointing", "grounding_gap")]
    if ran.world == "mosaic":                                     # every pixel has a name: object pixels are all pixels
        keys = [n.key for n in NUMBERS[:-1] if not n.key.endswith("_foreground")]
    for key in [*keys, "seconds"]:
        values = [written(key, final[key]) for final in first]
        over = [[ran.finals[s, k][key] for s in SEEDS] for k in NAMES]
        spreads = [written_spread(key, np.mean(x), np.std(x, ddof=1), 2) for x in over]
        known = [final[f"{key}_chance"] for final in first if f"{key}_chance" in final]
        chance = written(key, 0.0) if key.endswith("gap") else written(key, np.mean(known)) if known else ""
        yield key, values, spreads, chance


def test_every_cell_of_the_page_and_every_number_in_the_terminal(ran):
    head, *rows = Tables(ran.page).tables[0]
    assert head == ["", *NAMES.values(), "chance"]
    labels, printed, group = {n.key: n.label for n in NUMBERS}, [], ""
    rows = [(row, group := row[0] if len(row) == 1 else group) for row in rows]
    rows = [(row, group) for row, group in rows if len(row) > 1]
    for (row, group), (key, values, spreads, chance) in zip(rows, cells(ran), strict=True):
        assert row == [labels[key.removeprefix("unseen_")], *(f"{v} {s}" for v, s in zip(values, spreads)), chance], key
        assert key.startswith("unseen_") == ("unseen" in group.lower())
        printed += [*values, *filter(None, [chance]), *spreads]
    assert numbers_in(ran.printed.partition("\n\n")[0]) == printed
    assert re.split(r" {2,}", ran.printed.splitlines()[0].strip()) == [*NAMES.values(), "chance"]


def test_pictures_are_of_test_scenes_through_their_own_model(ran):
    scenes = ran.scenes("test", count=EXAMPLES)
    shown = [i for i in range(EXAMPLES) if len(scenes[i].regions) >= 3]
    assert len(shown) > 2, "the case can tell"
    first, model, tokenizer, _ = ran.runs[SEEDS[0], "sparc"]
    shares = []                                                   # weight in the words' own regions, in shares of their area
    for e in explain_examples(first, model, scenes, tokenizer, shown):
        covers = {r: patch_cover(e.masks[r], e.grid) for r in e.objects.tolist() if r >= 0}
        means = {r: e.weights[e.objects == r].mean(0) for r in covers}
        shares.append(np.mean([means[r] @ cover / cover.mean() for r, cover in covers.items()]))
    worst = shown[int(np.argmin(shares))]
    why = f"of the {len(shown)} such pictures among the first {EXAMPLES} the one in which SPARC has most trouble"
    assert why in ran.page or worst == shown[0]
    shown = list(dict.fromkeys([shown[0], worst, *shown]))
    seen = {}
    for key, name in NAMES.items():
        params, model, tokenizer, _ = ran.runs[SEEDS[0], key]
        seen[name] = explain_examples(params, model, scenes, tokenizer, shown[:6])
    maps = ran.figures["explain"]
    assert len(maps) == 2
    for n, call in enumerate(maps):
        assert np.array_equal(call.image, scenes[shown[n]].image) and call.title is None
        assert np.array_equal(call.masks, [r.mask for r in scenes[shown[n]].regions])
        rows = [(name, stage) for name in NAMES.values() for stage in ("similarity", "weights")]
        assert [(row.name, row.kind) for row in call.rows] == rows
        for row in call.rows:
            e = seen[row.name][n]
            assert call.grid == e.grid and call.words == e.words and np.array_equal(call.objects, e.objects)
            np.testing.assert_allclose(row.values, getattr(e, row.kind), atol=1e-4, err_msg=row.kind)
        assert np.abs(call.rows[0].values - call.rows[2].values).max() > 0.01, "the case can tell"
    assert f"the first of {ran.world}-test with three regions or more." in ran.page and "has most trouble" in ran.page
    (masks,) = ran.figures["masks"]
    assert list(masks.predictions) == list(NAMES.values()) and tuple(masks.classes) == scenes.classes
    for n, i in enumerate(shown[:6]):
        assert np.array_equal(masks.images[n], scenes[i].image)
        for name, predicted in masks.predictions.items():
            assert np.array_equal(masks.truths[n], seen[name][n].truth)
            assert (predicted[n] == seen[name][n].predicted).mean() > 0.95, name
    assert any((a != b).mean() > 0.1 for a, b in zip(*masks.predictions.values())), "the case can tell"


def test_curves_settings_data_and_files_are_their_own_models(ran):
    (curves,) = ran.figures["curves"]
    assert {name: list(rows) for name, rows in curves.series.items()} == {
        name: read_metrics(ran.folders[SEEDS[0], key] / "metrics.jsonl") for key, name in NAMES.items()}
    rows = {row[0].removesuffix(" ≠"): row[1:] for table in Tables(ran.page).tables[1:] for row in table}
    models = [ran.runs[SEEDS[0], key][1] for key in NAMES]
    for name in ("lambda_f", "lambda_g", "vision_width", "text_positions", "h_v"):
        assert rows[name] == [str(getattr(model, name)) for model in models]
    assert rows["steps"] == [str(STEPS)] * 2 and rows["lr"] == ["0.02"] * 2
    assert rows["python"] == [platform.python_version()] and rows["numpy"] == [np.__version__]
    assert rows["split"] == ["train", "test"] and rows["count"] == ["64", str(EXAMPLES)]
    assert f"{STEPS} steps on {ran.world}-train" in ran.page and f"of {ran.world}-test" in ran.page
    started = "sparc-ref demo" + " --data drawn" * (ran.world == "drawn")
    assert f"{started} --seed {SEEDS[0]} --steps {STEPS} --examples {EXAMPLES}" in ran.page
    files = {key: rows[f"{name}: numbers"] for key, name in NAMES.items()}
    for key, (file,) in files.items():
        assert json.loads((ran.out / file).read_text()) == ran.finals[SEEDS[0], key]
    for key, name in NAMES.items():
        for what, end in (("configuration", "config.json"), ("metrics", "metrics.jsonl"), ("checkpoint", f"step_{STEPS:08d}")):
            (file,) = rows[f"{name}: {what}"]
            assert (ran.out / file).exists() and (ran.out / file).is_relative_to(ran.folders[SEEDS[0], key])
            assert file.endswith(end)


@pytest.mark.parametrize("data, steps", [("mosaic", 300), ("drawn", 400)])
def test_a_demo_without_numbers_names_those_that_it_took(monkeypatch, tmp_path, data, steps):
    """The warm-up is a quarter of a short training, 50 updates of a long one; evaluations are four."""
    asked = []
    monkeypatch.setattr(d, "one_model", lambda *args: {"images": 1.0})
    monkeypatch.setattr(d, "write_page", lambda *args, **how: asked.append((args, how)))
    d.demo(d.DemoConfig(out=tmp_path, data=data), say=lambda text: None)
    [((path, folders, measured), how)] = asked
    assert how["command"] == f"sparc-ref demo{' --data drawn' * (data == 'drawn')} --seed 0 --steps {steps} --examples 500"
    assert path == tmp_path / "report.html" and folders == {name: tmp_path / key for key, name in NAMES.items()}
    assert measured == {prefix.strip("_"): f"{SPECS[data]}split={split}&count=500" for split, prefix in SPLITS[data].items()}
    assert how["finals"] == {name: {"images": 1.0} for name in NAMES.values()} and how["seeds"] is None
    for given, warmup, every in ((None, 50, steps // 4), (8, 2, 2), (2, 0, 1), (1000, 50, 250)):
        training = d.recipe(d.DemoConfig(data=data, steps=given, seed=7, checkpoint_every=9))[-1]
        assert (training.steps, training.warmup, training.eval_every) == (given or steps, warmup, every)
        assert (training.seed, training.checkpoint_every) == (7, 9)
