"""The loop: accumulation, metrics, interruption at any moment, refusal of what does not fit."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from sparc_ref import backend, optim
from sparc_ref.data import Batches, DrawnScenes, WordTokenizer
from sparc_ref.model import PRESETS, forward, init_params
from sparc_ref.run import checkpoint
from sparc_ref.run import train as loop
from sparc_ref.run.rundir import TIMING, Metrics, differences, read_metrics
from sparc_ref.run.train import Interrupted, NonFiniteLoss, TrainConfig, train


def small(steps=6, **changes):
    """A model that takes milliseconds, its data and its tokenizer."""
    data = DrawnScenes(size=16, count=40, style="short")
    tokenizer = WordTokenizer(data.vocabulary())
    config = replace(PRESETS["tiny"], image_size=16, vision_width=16, vision_depth=1, vision_heads=2, text_width=16,
                     text_depth=1, text_heads=2, embed_dim=8, vocab_size=tokenizer.vocab_size, max_tokens=20)
    options = TrainConfig(**{"steps": steps, "batch": 8, "warmup": 2, "log_every": 1, "eval_every": 3, "eval_limit": 8,
                             "checkpoint_every": 2, "shards": 2, **changes})
    return config, options, data, tokenizer


def go(out, steps=6, data=None, resume=False, overwrite=False, model=None, **changes):
    config, options, drawn, tokenizer = small(steps, **changes)
    said = []
    params = train(replace(config, **(model or {})), options, data or [drawn], tokenizer, out,
                   validation={"validation": DrawnScenes("validation", size=16, count=8, style="short")},
                   resume=resume, overwrite=overwrite, again="sparc-ref train --resume", say=said.append)
    return params, said


def rows(out):
    return [{k: v for k, v in row.items() if k not in TIMING} for row in read_metrics(out / "metrics.jsonl")]


def same(a, b):
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_run_directory_and_metrics(tmp_path):
    params, said = go(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= {"config.json", "metrics.jsonl", "tokenizer", "checkpoints"}
    assert [p.name for p in checkpoint.steps(tmp_path / "checkpoints")] == ["step_00000004", "step_00000006"]
    same(checkpoint.load(tmp_path).params, params)
    train_rows = [r for r in rows(tmp_path) if r["kind"] == "train"]
    eval_rows = [r for r in rows(tmp_path) if r["kind"] == "eval"]
    assert [r["step"] for r in train_rows] == [1, 2, 3, 4, 5, 6] and [r["step"] for r in eval_rows] == [0, 3, 6]
    assert set(train_rows[0]) == {"kind", "step", "loss", "loss_global", "loss_fine", "grad_norm", "lr", "temperature",
                                  "zeroed", "tokens_truncated", "captions_truncated", "duplicate_pictures", "examples"}
    assert {"i2t_r1", "t2i_r1", "miou", "pointing", "mass", "grounding_gap"} <= set(eval_rows[0])
    assert train_rows[-1]["examples"] == 48 and 0 <= train_rows[0]["zeroed"] <= 1
    text = "\n".join(said)
    for shown in ("lambda_f", "appendix D.4", "float32", "NumPy on the CPU", "drawn-train", str(tmp_path), "done: 6 updates"):
        assert shown in text


def test_loss_falls(tmp_path):
    go(tmp_path, steps=60, lr=3e-3, eval_every=0, log_every=10)
    losses = [r["loss"] for r in rows(tmp_path) if r["kind"] == "train"]
    assert losses[-1] < 0.9 * losses[0]


def test_the_grounding_gap_is_logged_without_the_fine_loss(tmp_path):
    go(tmp_path, steps=2, eval_every=2, model={"lambda_f": 0.0})
    train_row, eval_row = rows(tmp_path)[1], rows(tmp_path)[-1]
    assert "loss_fine" not in train_row and np.isfinite(eval_row["grounding_gap"])


def test_accumulation_is_the_average_of_the_gradients():
    config, _, first, tokenizer = small()
    second = DrawnScenes(size=16, count=40, style="short", seed=5)
    params = init_params(config, np.random.default_rng(0), "float64")

    def batches():
        return [Batches(d, tokenizer, 8, seed=s, max_tokens=20) for s, d in enumerate((first, second))]
    total, row = loop.gradients(params, batches(), config)
    each, losses = [], []
    for source in batches():
        b = next(source)
        loss, _, back = forward(params, b.images, b.tokens, b.mask, config)
        each.append(back(1.0))
        losses.append(float(loss))
    for name, g in total.items():
        want = (each[0][name] + each[1][name]) / 2
        np.testing.assert_allclose(g, want, rtol=0, atol=1e-14 * max(1, np.abs(want).max()), err_msg=name)
    assert row["loss"] == pytest.approx(np.mean(losses), rel=1e-12) and row["examples"] == 16
    assert row["loss/0:drawn-train"] == pytest.approx(losses[0], rel=1e-12)


def test_one_update_for_several_data_sets(tmp_path):
    _, _, first, _ = small()
    go(tmp_path, steps=2, data=[first, DrawnScenes(size=16, count=16, style="short", seed=5)])
    got = checkpoint.load(tmp_path)
    assert got.optimizer["step"] == 2 and got.record["counters"]["examples"] == 32
    assert [p["position"] for p in got.record["positions"]] == [2, 2]


def test_zeroed_counts_real_tokens_only():
    sparse = np.array([[[0, 1, 0, 1], [0, 0, 0, 0]]], float)
    assert loop.zeroed(sparse, np.array([[True, False]])) == 0.5


def test_truncated_tokens_are_counted(tmp_path):
    go(tmp_path, steps=2, model={"max_tokens": 2})
    assert [r for r in rows(tmp_path) if r["kind"] == "train"][-1]["tokens_truncated"] > 0


def test_float64_and_shards_agree(tmp_path):
    one, _ = go(tmp_path / "one", dtype="float64", shards=1)
    two, _ = go(tmp_path / "two", dtype="float64", shards=3)
    for name in one:
        np.testing.assert_allclose(one[name], two[name], atol=1e-10, err_msg=name)


# -------------------------------------------------------------------------------------------------- resuming


def test_a_run_is_never_overwritten_silently(tmp_path):
    go(tmp_path, steps=2)
    with pytest.raises(ValueError, match="holds a run already: continue it with --resume"):
        go(tmp_path, steps=2)
    go(tmp_path, steps=3, overwrite=True)
    assert checkpoint.load(tmp_path).step == 3


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    params, _ = go(tmp_path)
    before = rows(tmp_path)
    again, _ = go(tmp_path, resume=True)
    same(params, again)
    assert rows(tmp_path) == before


@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_ctrl_c_saves_and_resuming_gives_the_same_run(tmp_path, monkeypatch, at):
    want, _ = go(tmp_path / "whole")
    real, calls = loop.gradients, []

    def press(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **kwargs)
    monkeypatch.setattr(loop, "gradients", press)
    with pytest.raises(Interrupted, match="everything up to update") as e:
        go(tmp_path / "cut")
    assert "sparc-ref train --resume" in str(e.value)
    assert checkpoint.load(tmp_path / "cut").step == at
    monkeypatch.setattr(loop, "gradients", real)
    got, _ = go(tmp_path / "cut", resume=True)
    same(want, got)
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")


def test_rows_past_the_checkpoint_and_a_torn_line_are_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    one, two, three = ({"kind": "eval", "step": step, "seconds": 1.0} for step in (1, 2, 3))
    file.write_text(f'{json.dumps(one)}\n{json.dumps(two)}\n{json.dumps(three)}\n{{"st')
    Metrics(file).cut(2)
    assert read_metrics(file) == [one, two]
    file.write_text(f'{json.dumps(one)}\n{{"st\n{json.dumps(three)}\n')
    with pytest.raises(ValueError, match="line 2: not JSON"):
        Metrics(file).cut(2)


def test_resume_refuses_other_settings_and_names_them(tmp_path):
    go(tmp_path, steps=2)
    with pytest.raises(ValueError, match=r"train.lr: 0.001 there, 0.005 here"):
        go(tmp_path, steps=2, resume=True, lr=5e-3)
    with pytest.raises(ValueError, match=r"model.lambda_f: 1.0 there, 2.0 here"):
        go(tmp_path, steps=2, resume=True, model={"lambda_f": 2.0})
    with pytest.raises(ValueError, match=r"data.0:drawn-train.count: 40 there, 41 here"):
        go(tmp_path, steps=2, resume=True, data=[DrawnScenes(size=16, count=41, style="short")])
    WordTokenizer(["a"]).save(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=r"tokenizer in .* is not the one of this run"):
        go(tmp_path, steps=2, resume=True)


def test_resume_refuses_a_corrupt_checkpoint(tmp_path):
    go(tmp_path)
    file = checkpoint.find(tmp_path) / "parameters.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    with pytest.raises(checkpoint.CheckpointError, match=r"sha256 .* delete it to continue from step_00000004"):
        go(tmp_path, resume=True)


def test_differences_are_named():
    assert differences({"a": {"b": 1}, "c": [1]}, {"a": {"b": 2}, "c": [1], "d": 3}) == ["a.b: 1 there, 2 here",
                                                                                      "d: null there, 3 here"]


def test_a_second_process_is_refused(tmp_path):
    from sparc_ref.run.rundir import lock
    with lock(tmp_path), pytest.raises(ValueError, match="another process"):
        go(tmp_path)


# --------------------------------------------------------------------------------------------------- failures


def test_non_finite_loss_names_update_and_examples(tmp_path, monkeypatch):
    real, calls = loop.forward, []

    def broken(*args, **kwargs):
        calls.append(1)
        loss, trace, back = real(*args, **kwargs)
        return (loss * np.float32("nan") if len(calls) == 4 else loss), trace, back
    monkeypatch.setattr(loop, "forward", broken)
    with pytest.raises(NonFiniteLoss, match=r"update 4: the loss is nan on drawn-train, examples \[\d+, .*Lower --lr"):
        go(tmp_path)
    assert checkpoint.load(tmp_path).step == 2


def test_non_finite_gradient(tmp_path, monkeypatch):
    monkeypatch.setattr(optim, "clip_by_global_norm", lambda grads, limit: (grads, float("inf")))
    with pytest.raises(NonFiniteLoss, match="update 1: the gradient's norm is inf"):
        go(tmp_path)


def test_wrong_settings_are_named():
    for name, value in (("batch", 0), ("lr", float("nan")), ("lr", -1), ("beta1", 1), ("dtype", "float16"), ("steps", -1),
                        ("weight_decay", float("inf")), ("final_lr", float("nan")), ("attention_start", float("inf"))):
        with pytest.raises(ValueError, match=name):
            TrainConfig(**{name: value})
    config, options, data, tokenizer = small()
    with pytest.raises(ValueError, match="vocab_size: expected the tokenizer's"):
        train(replace(config, vocab_size=7), options, [data], tokenizer, "unused")
    with pytest.raises(ValueError, match="datasets"):
        train(config, options, [], tokenizer, "unused")


def test_device_cuda_says_what_is_missing(tmp_path):
    try:
        backend.get_device("cuda")
    except ValueError:
        with pytest.raises(ValueError, match="pip install"):
            go(tmp_path, device="cuda")
        return
    pytest.skip("a GPU is present")


# ---------------------------------------------------------------------------------------- kill -9 at random moments

COMMAND = [sys.executable, "-m", "sparc_ref", "train", "--data", "drawn?style=short&count=64", "--preset", "tiny",
           "--image-size", "16", "--vision-width", "16", "--vision-depth", "1", "--text-width", "16", "--text-depth", "1",
           "--steps", "60", "--batch", "8", "--checkpoint-every", "3", "--eval-every", "20", "--eval-limit", "8",
           "--log-every", "1", "--resume", "--out"]


def whole_and_killed(tmp_path, kills, seed):
    """Compare a run with one that was killed up to `kills` times, each some updates further.  -> kills that landed

    A kill follows what the run has printed, not a clock: how fast the machine is decides nothing.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([*COMMAND, str(tmp_path / "whole")], check=True, env=environment, stdout=subprocess.DEVNULL)
    draw, landed, target = random.Random(seed), 0, 0
    for _ in range(kills):
        target += draw.randint(3, 12)
        with subprocess.Popen(
            [*COMMAND, str(tmp_path / "killed")], env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            if not reached(process, target):
                break
            time.sleep(draw.uniform(0, 0.02))             # anywhere in an update, or while a checkpoint is written
            process.kill()
        landed += process.returncode == -signal.SIGKILL
    subprocess.run([*COMMAND, str(tmp_path / "killed")], check=True, env=environment, stdout=subprocess.DEVNULL)
    a, b = checkpoint.load(tmp_path / "whole"), checkpoint.load(tmp_path / "killed")
    same(a.params, b.params)
    for kind in "mv":
        same(a.optimizer[kind], b.optimizer[kind])
    assert a.record == b.record and a.step == b.step == 60
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")
    return landed


def reached(process, update):
    """Read what a run prints until it says that it got to `update`; false if it ends before."""
    return any((said := re.match(r"update (\d+)/", line)) and int(said[1]) >= update for line in process.stdout)


def test_kill_9_and_resume_gives_identical_weights(tmp_path):
    assert whole_and_killed(tmp_path, 3, seed=0) >= 1


@pytest.mark.slow
def test_kill_9_at_ten_random_moments(tmp_path):
    done = 0
    for n in range(20):
        done += whole_and_killed(tmp_path / str(n), 10 - done, seed=n)
        if done >= 10:
            return
    raise AssertionError(f"only {done} of 10 kills came before the run ended")
