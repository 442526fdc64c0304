"""Retrieval under an objective's own score: the trainer's numbers are those of sparc_ref on the same weights."""

import numpy as np
import pytest
import torch

from parity.trainer import evaluate as measuring
from parity.trainer import scores
from parity.trainer.launch import Place
from parity.trainer.model import SPARC, load_params
from sparc_ref.data import DrawnScenes, WordTokenizer
from sparc_ref.model import SPARCConfig, parameter_shapes
from sparc_ref.objectives.chosen import ObjectiveConfig, own_shapes, scores_of
from sparc_ref.run.measure import evaluate

SCENES = DrawnScenes(size=16, count=14, captions=2, style="short")
WORDS = WordTokenizer(SCENES.vocabulary())
CONFIG = SPARCConfig(image_size=16, patch_size=8, vision_width=16, vision_depth=1, vision_heads=2, text_width=16, text_depth=1,
                     text_heads=2, embed_dim=8, max_tokens=9, vocab_size=WORDS.vocab_size)
OWN = {
    "filip": ObjectiveConfig("filip"), "clip_filip": ObjectiveConfig("clip_filip", filip_drop_side="both"),
    "pacl": ObjectiveConfig("pacl", pacl_learn_scale=True, pacl_values="unit"),
    "pacl, no embedder": ObjectiveConfig("pacl", pacl_embedder="none", pacl_weight_scale=10.0),
    "gloria": ObjectiveConfig("gloria"),
    "gloria, all learned": ObjectiveConfig("gloria", gloria_learn="all", gloria_similarity="dot", gloria_agg="mean",
                                           gloria_double_softmax=True),
    "flair": ObjectiveConfig("flair"),
}  # fmt: skip
COSINE = {name: ObjectiveConfig(name) for name in ("sparc", "clip", "mgca", "siglip")}


def weights(objective, dtype):
    rng = np.random.default_rng(9)
    shapes = parameter_shapes(CONFIG) | own_shapes(objective, CONFIG.embed_dim)
    params = {name: rng.standard_normal(shape) * (0.5 if len(shape) == 2 else 1) for name, shape in shapes.items()}
    return {name: np.asarray(np.abs(p) if name.startswith("theta") else p, dtype) for name, p in params.items()}


def matrices(objective, rng, module=scores):
    """The scores of 5 pictures and 7 captions, one of them empty, by both sides in float64."""
    x = {"v": (5, 4, 8), "t": (7, 6, 8), "v_bar": (5, 8), "t_bar": (7, 8)}
    x = {name: rng.standard_normal(shape) for name, shape in x.items()}
    mask = np.arange(6) < np.array([6, 3, 1, 2, 5, 0, 4])[:, None]
    params = weights(objective, np.float64)
    ours = module.native_scores(objective, {name: torch.tensor(e) for name, e in x.items()}, torch.tensor(mask),
                                {name: torch.tensor(p) for name, p in params.items()})
    rule = scores_of(objective)
    own = {name: params[name] for name in own_shapes(objective, CONFIG.embed_dim)}
    return ours, rule and rule(own, x["v"], x["t"], mask, x["v_bar"], x["t_bar"])


@pytest.mark.parametrize("name", OWN)
def test_scores_are_the_references(rng, name):
    ours, theirs = matrices(OWN[name], rng)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == (5, 7)
        np.testing.assert_allclose(one.numpy(), other, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", COSINE)
def test_where_there_is_no_rule_there_are_no_scores(rng, name):
    assert matrices(COSINE[name], rng) == (None, None)


@pytest.mark.parametrize("name", [*OWN, "mgca"])
def test_the_numbers_are_those_of_sparc_ref_evaluate(name):
    objective = (OWN | COSINE)[name]
    params = weights(objective, np.float32)
    model = load_params(SPARC(CONFIG, objective=objective), params)
    ours = measuring.evaluate(model, SCENES, WORDS, 12, 5, torch.device("cpu"), Place(0, 1, 0, 1))
    theirs = evaluate(params, CONFIG, SCENES, WORDS, 12, prompts=(), objective=objective)
    names = {n for n in theirs if "2t_" in n or "2i_" in n}
    assert len(names) == (24 if name in OWN else 12) and names <= ours.keys() and not {n for n in ours if "native" in n} - names
    for n in names:
        assert ours[n] == pytest.approx(theirs[n], abs=1e-12), n


def test_a_wrong_temperature_is_seen(rng, monkeypatch):
    """The votes are brought to a cosine's size by the temperature that made them."""
    honest = scores.learned
    monkeypatch.setattr(scores, "learned", lambda p, name, value: honest(p, name, value) * 1.01)
    ours, theirs = matrices(OWN["gloria"], rng)
    assert np.abs(ours[0].numpy() - theirs[0]).max() > 1e-3
