"""train() against a loop written by hand on the oracle: every option off its default, two data sets, every logged field.

The hand-written loop is torch autograd through parity.oracle and the oracle's own clipping, schedule and AdamW; of sparc_ref it
takes the initial weights and the batches alone. Measured: after seven updates parameters agree to 4e-13, losses to 1e-14.
"""

import re
import shutil
import sys
import time
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from witness import close

from parity import oracle
from sparc_ref import optim
from sparc_ref.data import Batches, Example, Joined, WordTokenizer
from sparc_ref.model import SPARCConfig, init_params
from sparc_ref.run import checkpoint
from sparc_ref.run.measure import evaluate
from sparc_ref.run.rundir import TIMING, fingerprint, read_metrics
from sparc_ref.run.train import NonFiniteLoss, TrainConfig, train

train_room = sys.modules["sparc_ref.run.train"]
WORDS = ["a", "red", "green", "blue", "big", "small", "dog", "cat", "box", "on", "by"]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


CLOCK = Clock()


class Ticking(WordTokenizer):
    """A second passes for every text that is made a row of a batch, and at no other time."""

    def batch(self, texts, max_tokens):
        CLOCK.now += len(texts)
        return super().batch(texts, max_tokens)


class Pictures:
    """Random pictures of a size, each with one to three captions of one to nine words."""

    classes = ()

    def __init__(self, name, count, seed, size=12):
        rng = np.random.default_rng(seed)
        self.name, self.examples = name, []
        for i in range(count):
            captions = tuple(" ".join(rng.choice(WORDS, rng.integers(1, 10))) for _ in range(rng.integers(1, 4)))
            self.examples.append(Example(rng.integers(0, 256, (size, size, 3), np.uint8), captions, key=f"{name}-{i}"))

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, i):
        return self.examples[i]

    def describe(self):
        return {"name": self.name, "count": len(self)}


TOKENIZER = Ticking(WORDS)
CONFIG = SPARCConfig(
    image_size=12, patch_size=4, vision_width=8, vision_depth=2, vision_heads=2, text_width=6, text_depth=1, text_heads=3,
    vocab_size=TOKENIZER.vocab_size, max_tokens=6, embed_dim=5, mlp_ratio=2, gelu="erf", layer_norm_eps=1e-3,
    position_resize="linear", text_positions="none", text_pool="all", h_v="none", temperature="separate",
    temperature_init=0.0095, reduction="token", sigma=0.15, similarity="cosine", threshold_on="weights", flat="zero",
    ties="first", lambda_g=0.7, lambda_f=1.5,
)  # fmt: skip
OPTIONS = TrainConfig(
    steps=7, batch=3, lr=0.03, warmup=2, final_lr=0.004, beta1=0.8, beta2=0.95, eps=1e-3, weight_decay=0.4, clip=20.0,
    attention_start=0.5, seed=3, log_every=2, eval_every=3, eval_limit=6, checkpoint_every=2, keep=3, shards=2, dtype="float64",
)  # fmt: skip
SETS = (Pictures("first", 17, 1), Pictures("second", 17, 2, size=15))     # as many, and the second's are resized
KEPT = (4, 6, 7)                                          # the last `keep` checkpoints: in the first epoch, then in the second
MAY_LACK = {"captions_truncated", "duplicate_pictures"}      # counts that a log need not hold
CHECKS = {"near": Pictures("near", 9, 3), "far": Pictures("far", 5, 4)}


def start(out, sets=SETS, checks=CHECKS, **how):
    said = []
    return train(CONFIG, OPTIONS, sets, TOKENIZER, out, validation=checks, say=said.append, **how), said


def by_hand(sets):
    """-> the parameters after 0, 1, ... updates (NumPy), and what each update has to log"""
    params = init_params(CONFIG, np.random.default_rng(OPTIONS.seed), OPTIONS.dtype)
    params = {n: p * OPTIONS.attention_start if n.endswith("attn.out.weight") else p for n, p in params.items()}
    p = {n: torch.tensor(x) for n, x in params.items()}
    m, v = ({n: torch.zeros_like(x) for n, x in p.items()} for _ in range(2))
    batches = [Batches(d, TOKENIZER, OPTIONS.batch, seed=OPTIONS.seed + 1000 * i, max_tokens=CONFIG.max_tokens,
                       image_size=CONFIG.image_size) for i, d in enumerate(sets)]
    after, logged, unclamped = [params], [], []
    for step in range(OPTIONS.steps):
        leaves = {n: x.clone().requires_grad_() for n, x in p.items()}
        losses, parts, zeroed, cut, short = [], [], [], 0, 0
        for source, data in zip(batches, sets):
            b = next(source)
            mask = torch.tensor(b.mask)
            images = torch.tensor(b.images, dtype=torch.float64)
            loss, stages = oracle.model_stages(leaves, images, torch.tensor(b.tokens), mask, CONFIG)
            losses.append(loss)
            parts.append([float(stages[name].detach()) for name in ("loss_global", "loss_fine")])
            zeroed.append(float((stages["sparse"] == 0)[mask].double().mean()))
            over = [len(data[i].captions[k].split()) + 1 - CONFIG.max_tokens for i, k in zip(b.index, b.caption)]
            cut, short = cut + sum(x for x in over if x > 0), short + sum(x > 0 for x in over)
        grads = torch.autograd.grad(sum(losses) / len(losses), list(leaves.values()))
        grads, norm = oracle.clip(dict(zip(leaves, grads)), OPTIONS.clip)
        lr = oracle.warmup_cosine(step, OPTIONS.lr, OPTIONS.warmup, OPTIONS.steps, OPTIONS.final_lr)
        p, m, v = oracle.adamw_step(p, grads, m, v, step + 1, lr, (OPTIONS.beta1, OPTIONS.beta2), OPTIONS.eps,
                                    OPTIONS.weight_decay)
        unclamped.append((float(p["theta"]), float(p["theta_fine"])))
        p = oracle.clamp_theta(p)
        after.append({n: x.numpy() for n, x in p.items()})
        before = logged[-1] if logged else dict.fromkeys(("examples", "tokens_truncated", "captions_truncated"), 0)
        first, second = (float(loss.detach()) for loss in losses)
        logged.append({
            "kind": "train", "step": step + 1, "loss": (first + second) / 2, "loss_global": np.mean(parts, 0)[0],
            "loss_fine": np.mean(parts, 0)[1], "zeroed": np.mean(zeroed), "loss/0:first": first, "loss/1:second": second,
            "grad_norm": norm, "lr": lr, "temperature": float(torch.exp(-p["theta"])),
            "examples": before["examples"] + 2 * OPTIONS.batch, "tokens_truncated": before["tokens_truncated"] + cut,
            "captions_truncated": before["captions_truncated"] + short, "duplicate_pictures": 0,
            "seconds": 2.0 * OPTIONS.batch, "examples_per_second": 1.0,
        })
    return SimpleNamespace(after=after, logged=logged, unclamped=np.array(unclamped))


@pytest.fixture(scope="module")
def hand():
    return by_hand(SETS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", CLOCK)
        params, said = start(out)
    return SimpleNamespace(out=out, params=params, said=said, rows=read_metrics(out / "metrics.jsonl"))


def test_every_option_is_off_its_default():
    """A new option has to be set here too, so that nobody can forget to pass it on."""
    for given in (CONFIG, OPTIONS):
        left = {f.name for f in fields(given) if getattr(given, f.name) == f.default}
        assert left <= {"align", "device"}, left              # the others of align leave sigma without an effect


def test_the_case_can_tell(hand):
    """Clipping, clamping, cutting and the threshold act, and not always."""
    norms = [row["grad_norm"] for row in hand.logged]
    assert min(norms) < OPTIONS.clip < max(norms)
    assert (hand.unclamped > np.log(100)).any(0).all(), "both temperatures leave their range"
    assert all(0 < row["zeroed"] < 1 for row in hand.logged) and hand.logged[-1]["tokens_truncated"] > 0


def test_updates_equal_the_hand_written_loop(whole, hand):
    for step, path in zip(KEPT, checkpoint.steps(whole.out / "checkpoints"), strict=True):
        params = checkpoint.load(path).params
        assert path.name == f"step_{step:08d}" and params.keys() == hand.after[step].keys()
        for name, p in params.items():
            assert p.dtype == np.float64
            close(p, hand.after[step][name], f"update {step}, {name}", 1e-10)  # 1.5e-11 was met: Adam enlarges rounding near 0
    for name, p in whole.params.items():
        close(p, hand.after[7][name], name, 1e-10)


def test_every_logged_field_is_what_was_computed(whole, hand):
    rows = [row for row in whole.rows if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [2, 4, 6, 7]
    for row in rows:
        wanted = hand.logged[row["step"] - 1]
        assert wanted.keys() - MAY_LACK <= row.keys() <= wanted.keys(), "a field that is logged is computed here too"
        for name, value in row.items():
            known = wanted[name] if isinstance(value, str) else pytest.approx(wanted[name], rel=1e-12)
            assert value == known, (row["step"], name)


def test_evaluation_gets_the_validation_sets_and_the_weights_of_the_update(whole, hand):
    rows = [row for row in whole.rows if row["kind"] == "eval"]
    assert [(row["step"], row["split"]) for row in rows] == [(s, name) for s in (0, 3, 6, 7) for name in CHECKS]
    for row in rows:
        began = CLOCK.now
        numbers = evaluate(hand.after[row["step"]], CONFIG, CHECKS[row["split"]], TOKENIZER, OPTIONS.eval_limit, OPTIONS.batch,
                           seed=OPTIONS.seed)
        assert row["images"] == min(OPTIONS.eval_limit, len(CHECKS[row["split"]]))
        wanted = {"kind": "eval", "step": row["step"], "split": row["split"], **numbers, "seconds": CLOCK.now - began}
        assert row.keys() == wanted.keys()
        for name, value in wanted.items():
            assert row[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-12, abs=1e-13)), name
        (said,) = [line for line in whole.said if line.startswith(f"update {row['step']}, {row['split']}: ")]
        shown = {"R@1 i2t": "i2t_r1", "t2i": "t2i_r1", "grounding gap": "grounding_gap"}
        assert said.split(": ")[1] == ", ".join(f"{label} {numbers[key]:.3f}" for label, key in shown.items())


def test_every_setting_is_printed_under_its_title(whole):
    """At the start, with the reason for it; data and their order too."""
    first, _, rest = "\n".join(whole.said).partition("\nmodel:")
    model, _, training = rest.partition("\ntraining:")
    assert str(whole.out) in first and "float64" in first
    for given, text in ((CONFIG, model), (OPTIONS, training)):
        for f in fields(given):
            assert re.search(rf"^ +{f.name} +{re.escape(str(getattr(given, f.name)))}( |$)", text, re.M), f.name
    assert 0 < training.index('"first"') < training.index('"second"')


def test_what_is_printed_of_an_update_is_its_own(whole, hand):
    said = [line for line in whole.said if line.startswith("update ") and "loss" in line]
    assert [re.match(r"update (\d)/7, loss ([\d.]+)", line).groups() for line in said] == [
        (str(row["step"]), f"{row['loss']:.4f}") for row in hand.logged]


@pytest.mark.parametrize("at", KEPT[:2])
def test_a_resumed_run_of_two_data_sets_is_the_whole_run(whole, tmp_path, at):
    """From an update on where both data sets stand in the middle of their first or second epoch."""
    shutil.copytree(whole.out, tmp_path / "run")
    for step in {*KEPT[1:]} - {at}:
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step_{step:08d}")
    params, _ = start(tmp_path / "run", resume=True)
    for name, p in whole.params.items():
        np.testing.assert_array_equal(params[name], p, err_msg=name)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    for a, b in zip(rows, whole.rows, strict=True):
        assert {k: x for k, x in a.items() if k not in TIMING} == {k: x for k, x in b.items() if k not in TIMING}
    a, b = checkpoint.load(tmp_path / "run"), checkpoint.load(whole.out)
    assert a.record == b.record and a.optimizer["step"] == b.optimizer["step"] == 7
    assert [p["epoch"] for p in a.record["positions"]] == [1, 1]


def changed(data, **change):
    """The same description, other content."""
    other = Pictures(data.name, 0, 0)
    for e in data.examples:
        how = {"image": 255 - e.image} if "image" in change else {"captions": tuple(c[::-1] for c in e.captions)}
        other.examples.append(Example(how.get("image", e.image), how.get("captions", e.captions), key=e.key))
    return other


@pytest.mark.parametrize("what", ["image", "captions"])
@pytest.mark.parametrize("where", ["first", "second", "near", "far"])
def test_a_run_goes_on_with_the_examples_that_it_had(whole, tmp_path, what, where):
    shutil.copytree(whole.out, tmp_path / "run")
    sets = [changed(d, **{what: 1}) if d.name == where else d for d in SETS]
    checks = {name: changed(d, **{what: 1}) if name == where else d for name, d in CHECKS.items()}
    with pytest.raises(ValueError, match=where):
        start(tmp_path / "run", sets, checks, resume=True)


def test_what_is_said_at_the_end_names_the_right_files_and_the_right_limit(whole, hand):
    last = hand.logged[-1]
    assert whole.said[-1] == (f"done: 7 updates. Checkpoint {whole.out}/checkpoints/step_00000007, "
                              f"metrics {whole.out}/metrics.jsonl, configuration {whole.out}/config.json")
    (note,) = [line for line in whole.said if "were cut" in line]
    assert f"{last['captions_truncated']} of {last['examples']} captions" in note and "longer than max_tokens 6 and" in note
    assert f"cut: {last['tokens_truncated']} tokens" in note


@pytest.mark.parametrize("where, fault, words", [
    ("adamw_step", FloatingPointError("overflow"), "update 3: overflow, on first, second."),
    ("clip_by_global_norm", np.nan, "update 3: the gradient's norm is nan on first, second."),
    ("evaluate", FloatingPointError("overflow"), "update 3: evaluation on near: overflow."),
])
def test_a_bad_end_names_its_update_and_all_of_its_data(tmp_path, monkeypatch, where, fault, words):
    """Counted from 1; both data sets gave gradients; the first evaluation is at update 3."""
    room = train_room if where == "evaluate" else optim
    real, calls = getattr(room, where), []

    def faulty(*args, **how):
        calls.append(1)
        if len(calls) < 3:
            return real(*args, **how)
        if isinstance(fault, Exception):
            raise fault
        return real(*args, **how)[0], fault

    monkeypatch.setattr(room, where, faulty)
    with pytest.raises(NonFiniteLoss) as error:
        start(tmp_path / "run")
    assert str(error.value).startswith(words) and "step_00000002 is kept" in str(error.value)


def test_memory_is_asked_for_four_numbers_of_eight_bytes(tmp_path, monkeypatch):
    asked = []

    def refuse(config, copies, item):
        asked.append((config, copies, item))
        raise ValueError("no")

    monkeypatch.setattr(train_room, "check_memory", refuse)
    with pytest.raises(ValueError, match="no"):
        start(tmp_path / "run")
    assert asked == [(CONFIG, 4, 8)]


@pytest.mark.parametrize("what", ["image", "captions", "key"])
def test_the_hash_of_any_data_set_sees_every_example(what):
    """Of more examples than are decoded for the other hash; joined ones too, the second as well as the first."""
    def hashed(data):
        return fingerprint(data)["sha256 of pictures and captions"]

    data, other = Pictures("many", 130, 0, size=2), Pictures("many", 130, 0, size=2)
    e = other.examples[1]
    change = {"image": {"image": 255 - e.image}, "captions": {"captions": (*e.captions, "x")}, "key": {"key": "other"}}[what]
    other.examples[1] = replace(e, **change)
    assert hashed(data) == hashed(Pictures("many", 130, 0, size=2)) != hashed(other)
    assert hashed(Joined(SETS[0], data)) != hashed(Joined(SETS[0], other))
