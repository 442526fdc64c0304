"""A checkpoint as the tasks see it: every field of it is what the run wrote, every embedding what the towers give."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from sparc_ref.data import DrawnScenes, WordTokenizer, to_images
from sparc_ref.model import PRESETS, encode_images, encode_texts, own_params
from sparc_ref.objectives.chosen import ObjectiveConfig
from sparc_ref.run import checkpoint
from sparc_ref.run.rundir import load_run
from sparc_ref.run.sources import remembered
from sparc_ref.run.train import TrainConfig, train
from sparc_ref.tasks.embedder import Embedder

DATA = DrawnScenes(size=16, count=9, style="short")
OBJECTIVE = ObjectiveConfig("pacl")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out, tokenizer = tmp_path_factory.mktemp("embedder") / "run", WordTokenizer(DATA.vocabulary())
    config = replace(PRESETS["tiny"], image_size=16, vision_width=16, vision_depth=1, text_width=16, text_depth=1,
                     vocab_size=tokenizer.vocab_size, max_tokens=5)
    options = TrainConfig(steps=2, batch=4, eval_every=0, checkpoint_every=1, warmup=1, shards=1)
    train(config, options, [DATA], tokenizer, out, say=lambda text: None, objective=OBJECTIVE,
          sources=remembered(["drawn?style=short", "mosaic?words=2"]))
    return out


def test_every_field_is_that_of_the_run(run, tmp_path):
    first, last = checkpoint.steps(run / "checkpoints")
    model, (params, config, tokenizer, _) = Embedder.open(run, batch=3, shards=2), load_run(run)
    assert (model.config, model.objective, model.name) == (config, OBJECTIVE, str(last)) and config != PRESETS["tiny"]
    assert (model.batch, model.shards, model.tokenizer.hash) == (3, 2, tokenizer.hash)
    assert model.trained_on == ("drawn?style=short", "mosaic?words=2")
    assert model.params.keys() == params.keys() and all(np.array_equal(model.params[n], p) for n, p in params.items())
    shutil.copytree(last, tmp_path / "moved")                     # the same weights elsewhere, other weights in their place
    assert Embedder.open(tmp_path / "moved").identity == model.identity != Embedder.open(first).identity


def test_embeddings_are_those_of_the_towers(run):
    """Texts in batches of other lengths; padding is not among what counts; PACL's own parameters are no tower's."""
    model, texts = Embedder.open(run, batch=2, shards=1), ["red circle", "blue", "a green square left of it", "red", "blue red"]
    params = own_params(model.params, model.config)
    assert params.keys() < model.params.keys(), "the case can tell"
    tokens, mask = model.tokenizer.batch(texts, 5)
    got, wanted = model.texts(texts), encode_texts(params, tokens, mask, model.config)
    assert got.keys() == {"t", "t_bar", "mask"} and np.array_equal(got["mask"], mask) and not mask.all()
    assert all(np.array_equal(got[name], x) for name, x in wanted.items())
    np.testing.assert_allclose(model.pooled_texts(texts), wanted["t_bar"], atol=1e-5)
    pictures = [DATA[i].image for i in range(3)]
    wanted = encode_images(params, to_images(pictures), model.config)
    assert all(np.array_equal(x, wanted[name]) for name, x in model.images(pictures).items())
    assert model.pooled_texts([]).shape == (0, model.config.embed_dim)
