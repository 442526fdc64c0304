"""docs/draw_explain.py: README's picture, and the counts that the text under it and docs/learning.md give."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from pages import figures_asked_for

from sparc_ref.commands import demo as d
from sparc_ref.data import MosaicScenes
from sparc_ref.run.examples import Explained, explain_examples
from sparc_ref.run.rundir import load_run

PLACE = Path(__file__).parent.parent.parent / "docs" / "draw_explain.py"
pytestmark = pytest.mark.usefixtures("tiny_recipe")


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("draw_explain", PLACE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny_recipe(monkeypatch):
    from dataclasses import replace

    real = d.recipe

    def recipe(config):
        scenes, validation, tokenizer, model, training = real(config)
        model = replace(model, vision_width=16, vision_depth=1, text_width=16)
        training = replace(training, batch=4, eval_limit=8)
        return replace(scenes, count=64), replace(validation, count=8), tokenizer, model, training
    monkeypatch.setattr(d, "recipe", recipe)


def test_the_picture_is_of_the_first_test_mosaic_through_both_models(script, tmp_path, monkeypatch, capsys):
    for key in d.MODELS:
        d.one_model(d.DemoConfig(out=tmp_path, steps=2, examples=9), key, tmp_path, "", lambda text: None)
    monkeypatch.setattr(sys, "argv", ["draw_explain.py", str(tmp_path), str(tmp_path / "x.png")])
    with figures_asked_for() as figures:
        script.main()
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    (call,), scenes = figures["explain"], MosaicScenes("test", size=48, count=9)
    first = next(i for i in range(9) if len(scenes[i].regions) >= 3)
    assert np.array_equal(call.image, scenes[first].image)
    assert np.array_equal(call.masks, [r.mask for r in scenes[first].regions])
    assert [(row.name, row.kind) for row in call.rows] == [(name, "weights") for name, _ in d.MODELS.values()]
    for row, key in zip(call.rows, d.MODELS, strict=True):
        params, config, tokenizer, _ = load_run(tmp_path / key)
        (e,) = explain_examples(params, config, scenes, tokenizer, [first])
        np.testing.assert_allclose(row.values, e.weights, atol=1e-5)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in lines[1:]] == [name for name, _ in d.MODELS.values()]


def test_misses_are_counted_by_colour(script, monkeypatch):
    """Four patches, three regions; the first word's top patch is right, the second's on its colour, the third's on another."""
    masks = np.zeros((3, 2, 2), bool)
    masks[0, 0, 0] = masks[1, 0, 1] = masks[2, 1] = True
    weights = np.array([[0.7, 0.1, 0.2, 0.0], [0.6, 0.4, 0.0, 0.0], [0.0, 0.5, 0.2, 0.3]])
    words = ("red-plain", "red-dotted", "blue-plain")
    e = Explained(np.zeros((2, 2, 3), np.uint8), "", words, weights, None, None, weights, (2, 2), np.arange(3), masks=masks)
    monkeypatch.setattr(script, "explain_examples", lambda *args: [e] * len(args[-1]))
    counted = script.misses({}, None, range(5), None, pictures=2)
    assert counted == pytest.approx({"words": 6, "missed": 4, "same colour": 2, "removed": (1 + 2 + 1) / 12,
                                     "inside, colour shared": (0.7 + 0.4) / 2, "inside, colour alone": 0.5})
