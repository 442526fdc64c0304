"""Training under another objective: the same loop, resumed to the last bit, remembered, measured by its own score as well."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from witness import close

from sparc_ref import model
from sparc_ref.commands import cli
from sparc_ref.data import DrawnScenes, WordTokenizer
from sparc_ref.evaluate.retrieval import retrieval, retrieval_chance, retrieval_of_scores
from sparc_ref.model import PRESETS, SPARCConfig, forward, forward_with, init_params, parameter_shapes
from sparc_ref.objectives import sparc
from sparc_ref.objectives.chosen import NAMES, ObjectiveConfig, after_update, init_own, loss_of, own_shapes, scores_of
from sparc_ref.objectives.pacl import embed
from sparc_ref.run import examples, measure
from sparc_ref.run.examples import explain_caption, explain_examples
from sparc_ref.run.measure import evaluate
from sparc_ref.run.rundir import load_run, objective_of, read_metrics
from sparc_ref.run.train import TrainConfig, train

DATA = DrawnScenes(size=16, count=40, style="short")
TOKENIZER = WordTokenizer(DATA.vocabulary())
CONFIG = replace(PRESETS["tiny"], image_size=16, vision_width=16, vision_depth=1, vision_heads=2, text_width=16, text_depth=1,
                 text_heads=2, embed_dim=8, vocab_size=TOKENIZER.vocab_size, max_tokens=20)
MGCA = {"mgca_width": 4, "mgca_prototypes": 7}
OTHERS = [ObjectiveConfig(name, **(MGCA if name == "mgca" else {})) for name in NAMES if name != "sparc"]
OTHERS += [ObjectiveConfig("pacl", pacl_learn_scale=True, pacl_embedder="none", pacl_weight_scale=3.0),
           ObjectiveConfig("gloria", gloria_learn="all"),
           ObjectiveConfig("mgca", mgca_attention="paramfree", mgca_prototypes=7)]


def go(out, objective, steps=4, resume=False):
    options = TrainConfig(steps=steps, batch=8, warmup=1, log_every=1, eval_every=0, eval_limit=8, checkpoint_every=2, shards=2)
    said = []
    params = train(CONFIG, options, [DATA], TOKENIZER, out, validation={"validation": DATA}, resume=resume, say=said.append,
                   objective=objective)
    return params, "\n".join(said)



@pytest.mark.parametrize("objective", OTHERS, ids=lambda o: f"{o.objective}-{NAMES.index(o.objective)}")
def test_a_run_is_trained_remembered_and_measured(tmp_path, objective):
    params, said = go(tmp_path, objective)
    assert params.keys() == parameter_shapes(CONFIG).keys() | own_shapes(objective, CONFIG.embed_dim).keys()
    loaded, config, tokenizer, found = load_run(tmp_path)
    assert config == CONFIG and objective_of(found.record["config"]) == objective
    assert all(np.array_equal(loaded[n], params[n]) for n in params)
    numbers = evaluate(loaded, config, DATA, tokenizer, 8, objective=objective)
    native = objective.objective in ("filip", "clip_filip", "pacl", "gloria", "flair")
    assert ("native_i2t_r1" in numbers) == native and "i2t_r1" in numbers
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if row["kind"] == "train"]
    assert len(rows) == 4 and all(np.isfinite(row["loss"]) for row in rows)
    assert (f"objective         {objective.objective}" in said) and "filip_keep" in said


def test_localisation_reads_the_patches_that_pacl_compares(tmp_path, monkeypatch):
    objective = ObjectiveConfig("pacl")
    params, _ = go(tmp_path, objective, steps=2)
    rng = np.random.default_rng(3)
    params = params | {n: rng.normal(size=params[n].shape).astype("float32") for n in own_shapes(objective, CONFIG.embed_dim)}
    got = evaluate(params, CONFIG, DATA, TOKENIZER, 8, objective=objective, head="g_v")
    plain = evaluate(params, CONFIG, DATA, TOKENIZER, 8, head="g_v")
    real = measure.images_of

    def embedded(*args):
        image = real(*args)
        return image | {"v": embed(params, image["v"])[0]}

    monkeypatch.setattr(measure, "images_of", embedded)
    by_hand = evaluate(params, CONFIG, DATA, TOKENIZER, 8, head="g_v")
    local = {"mass", "pointing", "iou", "choice", "miou", "miou_caption"}
    assert {k: got[k] for k in local} == {k: by_hand[k] for k in local} != {k: plain[k] for k in local}
    assert {k: got[k] for k in ("i2t_r1", "grounding_gap")} == {k: plain[k] for k in ("i2t_r1", "grounding_gap")}
    monkeypatch.undo()
    (shown,) = explain_examples(params, CONFIG, DATA, TOKENIZER, [2], objective=objective)
    one = DATA[2].image, DATA[2].captions[0]
    alone = explain_caption(params, CONFIG, TOKENIZER, *one, objective)
    unlike = explain_caption(params, CONFIG, TOKENIZER, *one)
    monkeypatch.setattr(examples, "images_of", embedded)
    (wanted,) = explain_examples(params, CONFIG, DATA, TOKENIZER, [2])
    assert np.array_equal(shown.weights, wanted.weights), "the maps are of those patches too"
    assert np.array_equal(alone.weights, wanted.weights) and not np.allclose(unlike.weights, wanted.weights)


@pytest.mark.parametrize("objective", [o for o in OTHERS if scores_of(o)], ids=lambda o: f"{o.objective}-{OTHERS.index(o)}")
def test_scores_some_pictures_at_a_time_are_those_of_all(objective, rng):
    """Captions in batches of other lengths, pictures in blocks that end anywhere; which of the two asks is kept apart."""
    scores, D = scores_of(objective), CONFIG.embed_dim
    own = init_own(objective, D, rng, "float64")
    v, v_bar, t_bar = rng.normal(size=(13, 4, D)), rng.normal(size=(13, D)), rng.normal(size=(9, D))
    words = [(rng.normal(size=(m, length, D)), np.arange(length) < rng.integers(1, length + 1, (m, 1)))
             for m, length in ((2, 3), (4, 6), (3, 2))]
    starts = np.cumsum([0, 2, 4])
    parts = [scores(own, v, t, mask, v_bar, t_bar[a:a + len(t)]) for a, (t, mask) in zip(starts, words)]
    wanted = [np.concatenate(each, 1) for each in zip(*parts)]
    for got, known in zip(measure.scored(scores, own, v, words, v_bar, t_bar, pictures=5), wanted, strict=True):
        np.testing.assert_allclose(got, known, rtol=1e-9, atol=1e-12)


def test_every_parameter_of_an_objective_moves(tmp_path):
    for objective in OTHERS:
        start = init_own(objective, CONFIG.embed_dim, np.random.default_rng(0))
        params, _ = go(tmp_path / f"{OTHERS.index(objective)}", objective, steps=3)
        for name, x in start.items():
            assert not np.array_equal(params[name], x), (objective.objective, name)


def test_resumed_is_not_resumed(tmp_path):
    """Two updates and two more are four, to the last bit, prototypes included."""
    objective = ObjectiveConfig("mgca", mgca_freeze=1, **MGCA)
    whole, _ = go(tmp_path / "whole", objective)
    cut = tmp_path / "cut"
    go(cut, objective)
    last = cut / "checkpoints" / "step_00000004"
    for file in sorted(last.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    last.rmdir()
    resumed, _ = go(cut, objective, resume=True)
    assert all(np.array_equal(resumed[n], whole[n]) for n in whole)
    length = np.linalg.norm(whole["mgca.prototypes"], axis=1)
    assert np.max(np.abs(length - 1)) < 1e-6


def test_another_objective_is_no_continuation(tmp_path):
    go(tmp_path, OTHERS[0])
    with pytest.raises(ValueError, match=r"other settings; objective\.objective: clip there, filip here"):
        go(tmp_path, ObjectiveConfig("filip"), resume=True)


def test_sparc_writes_nothing_of_objectives(tmp_path):
    _, said = go(tmp_path, ObjectiveConfig())
    assert "objective" not in json.loads((tmp_path / "config.json").read_text()) and "filip" not in said
    assert objective_of({}) == ObjectiveConfig() and loss_of(ObjectiveConfig()) is None


def test_the_model_starts_alike_under_every_objective(tmp_path):
    first = [go(tmp_path / o.objective, o, steps=0)[0] for o in (ObjectiveConfig(), OTHERS[0], OTHERS[-1])]
    assert all(np.array_equal(first[0][n], params[n]) for n in first[0] for params in first[1:])


def toy(rng):
    config = SPARCConfig(image_size=4, patch_size=2, vision_width=6, vision_depth=1, vision_heads=2, text_width=4, text_depth=1,
                         text_heads=1, vocab_size=9, max_tokens=5, embed_dim=5, mlp_ratio=2)
    params = {n: x + 0.3 * rng.standard_normal(x.shape) for n, x in init_params(config, rng, "float64").items()}
    images, tokens = rng.standard_normal((3, 3, 4, 4)), rng.integers(0, 9, (3, 5))
    return config, params, (images, tokens, np.arange(5) < np.array([5, 2, 3])[:, None])


def test_sparc_as_an_objective_is_forward_to_the_last_bit(rng):
    config, params, batch = toy(rng)
    loss, _, back = forward(params, *batch, config)
    loss2, _, back2 = forward_with(sparc, params, *batch, config)
    assert loss == loss2
    grads, grads2 = back(0.7), back2(0.7)
    assert list(grads) == list(grads2) and all(np.array_equal(grads[n], grads2[n]) for n in grads)


@pytest.mark.parametrize("name", ["filip", "pacl", "gloria"])
def test_gradients_reach_through_the_towers(name, rng):
    """Along one random direction of all parameters together, the objective's own among them."""
    config, params, batch = toy(rng)
    objective = ObjectiveConfig(name, **({"filip_keep": 0.7} if name == "filip" else {}))
    params |= {n: x + 0.1 * rng.standard_normal(x.shape)
               for n, x in init_own(objective, config.embed_dim, rng, "float64").items()}
    direction = {n: rng.standard_normal(x.shape) for n, x in params.items()}
    loss_fn = loss_of(objective)
    _, _, back = forward_with(loss_fn, params, *batch, config)
    grads = back(0.7)
    assert list(grads) == list(params)

    def along(h):
        up, down = (forward_with(loss_fn, {n: x + s * h * direction[n] for n, x in params.items()}, *batch, config)[0]
                    for s in (1, -1))
        return 0.7 * (up - down) / (2 * h)

    h = 1e-5
    measured, claimed = (4 * along(h / 2) - along(h)) / 3, sum(np.sum(grads[n] * direction[n]) for n in params)
    assert abs(measured - claimed) < 1e-7 * np.sqrt(sum(np.sum(g * g) for g in grads.values()))


def test_a_parameter_out_of_reach_gets_zeros(rng):
    config, params, batch = toy(rng)
    grads = forward_with(loss_of(ObjectiveConfig("filip")), params, *batch, config)[2]()
    assert not grads["h_v.weight"].any() and grads["g_v.weight"].any()


def test_prototypes_alone_are_changed_after_an_update(rng):
    params = {"theta": np.asarray(2.0), "mgca.prototypes": rng.standard_normal((4, 3))}
    after = after_update(params)
    close(np.linalg.norm(after["mgca.prototypes"], axis=1), np.ones(4), "length", 1e-14)
    assert after["theta"] is params["theta"] and after_update({"theta": 1})["theta"] == 1


def test_recall_of_scores_is_recall_of_cosines(rng):
    image, text, owner = rng.standard_normal((6, 4)), rng.standard_normal((9, 4)), rng.integers(0, 5, 9)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)]
    s = unit[0] @ unit[1].T
    assert retrieval_of_scores(s, s, owner) == retrieval(image, text, owner)
    flipped, plain, other = retrieval_of_scores(s, -s, owner), retrieval(image, text, owner), retrieval(-image, text, owner)
    assert {k: x for k, x in flipped.items() if k[0] == "i"} == {k: x for k, x in plain.items() if k[0] == "i"}
    assert {k: x for k, x in flipped.items() if k[0] == "t"} == {k: x for k, x in other.items() if k[0] == "t"}
    constant = retrieval_of_scores(np.ones((6, 9)), np.ones((6, 9)), owner)
    assert constant["t2i_r1"] == pytest.approx(1 / 6)


@pytest.mark.parametrize(("settings", "message"), [
    ({"objective": "coca"}, "objective: expected one of sparc, clip, .*; got 'coca'"),
    ({"objective": "filip", "filip_keep": 0.0}, r"filip_keep: expected a share of tokens in \(0, 1\]"),
    ({"objective": "clip", "filip_keep": 0.5}, "filip_keep: belongs to objective filip or clip_filip, got clip"),
    ({"mgca_width": 64}, "mgca_width: belongs to objective mgca, got sparc"),
    ({"objective": "pacl", "pacl_pairs": "own"}, "pacl_pairs: expected one of all, matched"),
    ({"objective": "mgca", "mgca_prototypes": 0}, "mgca_prototypes: expected at least 1"),
    ({"objective": "clip_filip", "weight_clip": float("nan")}, "weight_clip: expected at least 0"),
])
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**settings)


def test_the_command_line_hands_it_on(monkeypatch, tmp_path, capsys):
    given = []
    monkeypatch.setattr(cli, "train", lambda *a, **how: given.append(how["objective"]))
    assert cli.run(["train", "--out", str(tmp_path / "r"), "--objective", "mgca", "--mgca-attention", "paramfree",
                    "--mgca-lambda-cpa", "0.25", "--data", "drawn?count=30"]) == 0
    assert given == [ObjectiveConfig("mgca", mgca_attention="paramfree", mgca_lambda_cpa=0.25)]
    assert cli.run(["train", "--out", str(tmp_path / "r"), "--data", "drawn?count=30"]) == 0 and given[1] == ObjectiveConfig()
    assert cli.run(["train", "--out", str(tmp_path / "r"), "--objective", "clip", "--filip-keep", "0.5"]) == 2
    assert "--filip-keep: belongs to objective filip or clip_filip, got clip" in capsys.readouterr().err


def test_the_command_evaluate_knows_the_objective(tmp_path, capsys):
    go(tmp_path, ObjectiveConfig("pacl"))
    assert cli.run(["evaluate", "--checkpoint", str(tmp_path), "--data", "drawn?style=short", "--limit", "8"]) == 0
    out = capsys.readouterr().out
    assert "native_t2i_r1" in out and "under the objective's own score" in out


def test_settings_survive_json():
    assert all(objective_of({"objective": json.loads(json.dumps(asdict(o)))}) == o for o in OTHERS)
    assert model.own_params({"theta": 1, "theta_pool": 2}, SPARCConfig()) == {"theta": 1}


def test_a_batch_of_one_teaches_no_objective_that_tells_pairs_apart(tmp_path):
    said = []
    train(CONFIG, TrainConfig(steps=1, batch=1, eval_every=0), [DATA], TOKENIZER, tmp_path / "run", say=said.append,
          objective=ObjectiveConfig("clip"))
    assert any("a batch of one: clip has no other caption or picture to tell apart" in line for line in said)


@pytest.mark.parametrize("name", ["filip", "pacl", "flair"])
def test_native_numbers_and_their_chance_by_hand(name, rng):
    """Two captions of each picture, four pictures at a time; PACL's own embedding is within its score, once."""
    objective, data = ObjectiveConfig(name), DrawnScenes(size=16, count=9, style="short", captions=2)
    own = {n: rng.normal(size=s) for n, s in own_shapes(objective, CONFIG.embed_dim).items()}
    params = init_params(CONFIG, rng, "float64") | own
    got = evaluate(params, CONFIG, data, TOKENIZER, batch=4, objective=objective)
    image = measure.images_of(params, CONFIG, [data[i] for i in range(9)])
    tokens, mask = TOKENIZER.batch([text for i in range(9) for text in data[i].captions], CONFIG.max_tokens)
    text, owner = measure.texts_of(params, CONFIG, tokens, mask), np.repeat(np.arange(9), 2)
    i2t, t2i = scores_of(objective)(own, image["v"], text["t"], mask, image["v_bar"], text["t_bar"])
    wanted = retrieval_of_scores(i2t, t2i, owner)
    wanted |= {f"{key}_chance": x for key, x in retrieval_chance(owner, 9).items()}
    assert {key: got[f"native_{key}"] for key in wanted} == pytest.approx(wanted)
