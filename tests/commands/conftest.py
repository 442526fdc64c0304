from dataclasses import replace

import pytest

from sparc_ref.commands import demo as d


@pytest.fixture
def tiny_recipe(monkeypatch):
    """The demo's recipe with a model that takes milliseconds."""
    real = d.recipe

    def recipe(config):
        scenes, validation, tokenizer, model, training = real(config)
        model = replace(model, vision_width=16, vision_depth=1, text_width=16, text_depth=1)
        scenes = replace(scenes, count=64)
        return scenes, replace(validation, count=8), tokenizer, model, replace(training, batch=4, eval_limit=8)
    monkeypatch.setattr(d, "recipe", recipe)
