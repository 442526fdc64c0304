"""The trainer on one process: runs, resumes to the bit, skips what is not finite, stops on signals, exports for sparc-ref."""

import json
import os
import signal
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.numpy import load, load_file
from small_run import arguments, parameters, rows, run_all

from parity.trainer import __main__ as command
from parity.trainer import export, optim, replay, train
from sparc_ref.run.measure import evaluate
from sparc_ref.run.rundir import load_run
from sparc_ref.run.sources import open_source


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    said = []
    assert command.main(arguments(out, "--eval-every", "5"), say=said.append) == 0
    return out, "\n".join(said)


def test_it_says_what_it_does_and_why(whole):
    out, said = whole
    config = json.loads((out / "config.json").read_text())
    assert config["machine"]["strategy"] == "none" and config["chosen"]["strategy"] == "one rank"
    assert "strategy               none         chosen: one rank" in said
    assert "weight_decay           0.2          chosen: preset tiny" in said
    train_rows = [r for r in rows(out) if r["kind"] == "train"]
    assert [r["step"] for r in train_rows] == list(range(1, 11))
    names = {"loss", "loss_global", "loss_fine", "zeroed", "entropy", "grad_norm", "param_norm", "update_norm", "lr", "theta",
             "temperature", "examples", "skipped_updates"}  # fmt: skip
    assert names <= train_rows[-1].keys() and train_rows[-1]["examples"] == 60
    assert 0 < train_rows[-1]["entropy"] <= np.log(4) + 1e-6  # 4 patches


def test_a_run_that_crashed_goes_on_to_the_same_bits(whole, tmp_path):
    """Twice: once with checkpoints written in the background, and with what a save that was killed leaves behind."""
    out = tmp_path / "run"
    argv = arguments(out, "--eval-every", "5", "--async-checkpoints")
    status = run_all({}, {"commands": [(argv, 5), ([*argv, "--resume"], 8)]})["status"]
    assert status.tolist() == [-1, -1]
    left = out / "sharded" / ".partial-step_00000009"
    left.mkdir()
    (left / "__0_0.distcp").write_bytes(b"half of it")
    assert command.main([*argv, "--resume"]) == 0
    assert parameters(out) == parameters(whole[0]) and rows(out) == rows(whole[0])
    assert sorted(p.name for p in (out / "sharded").iterdir()) == ["step_00000009", "step_00000010"]  # keep 2
    damaged = out / "sharded" / "step_00000010" / "__0_0.distcp"
    damaged.write_bytes(damaged.read_bytes()[:-7])
    assert command.main([*argv, "--resume"]) == 2


def test_a_run_that_crashed_before_its_first_checkpoint_starts_again(whole, tmp_path):
    """From the same weights: they are read again, as no checkpoint holds them yet."""
    weights = str(whole[0] / "checkpoints" / "step_00000010" / "parameters.safetensors")
    argv = ["--init", weights, "--steps", "3"]
    one, other = arguments(tmp_path / "one", *argv), arguments(tmp_path / "other", *argv)
    assert run_all({}, {"commands": [(one, None), (other, 2), ([*other, "--resume"], None)]})["status"].tolist() == [0, -1, 0]
    assert parameters(tmp_path / "other", 3) == parameters(tmp_path / "one", 3)
    assert rows(tmp_path / "other") == rows(tmp_path / "one")


def test_sparc_ref_opens_it(whole, tmp_path):
    """The reference's towers and measures on the export give the numbers that the trainer wrote."""
    out, _ = whole
    params, config, tokenizer, found = load_run(out)
    data = open_source("drawn?count=20&style=short", 16, split="validation", count=12)
    numbers = evaluate(params, config, data, tokenizer, 12, prompts=())
    last = [r for r in rows(out) if r["kind"] == "eval"][-1]
    for name in ("i2t_r1", "i2t_r5", "t2i_r1", "t2i_r10", "images", "captions", "i2t_r5_chance", "fine_loss"):
        assert last[name] == pytest.approx(numbers[name], abs=1e-5), name
    assert found.step == 10 and found.optimizer["step"] == 10 and found.record["config"]["sources"]["data"]
    assert export.main(["--run", str(out), "--out", str(tmp_path / "model.safetensors")]) == 0
    alone = load_file(tmp_path / "model.safetensors")
    assert {name: x.tobytes() for name, x in alone.items()} == {name: x.tobytes() for name, x in params.items()}


def test_what_is_not_finite_is_skipped_then_stops(tmp_path, monkeypatch, capsys):
    out, sound, steps = tmp_path / "run", optim.backward, iter(range(100))
    bad = {2, 5, 6, 7}

    def backward(model, batch, **options):
        loss = sound(model, batch, **options)
        if next(steps) in bad:
            next(model.parameters()).grad.view(-1)[0] = torch.nan
        return loss

    monkeypatch.setattr(optim, "backward", backward)
    assert command.main(arguments(out, "--skips", "3")) == 2
    assert "update 8" in capsys.readouterr().err
    kinds = [(r["kind"], r["step"]) for r in rows(out)]
    assert [step for kind, step in kinds if kind == "skipped"] == [3, 6, 7, 8]
    saved = load((out / "offending" / "step_00000008_set_0_rank_0.safetensors").read_bytes())
    assert saved["images"].shape == (6, 16, 16, 3) and len(saved["items"]) == 6
    monkeypatch.undo()
    said = replay.replay(out, out / "offending" / "step_00000008_set_0_rank_0.safetensors")
    assert "everything is finite" in said                 # the fault was planted outside of the model


def test_a_signal_saves_and_the_run_goes_on(whole, tmp_path, monkeypatch, capsys):
    out, sound = tmp_path / "run", train.Run.update

    def update(run):
        loss = sound(run)
        if run.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    monkeypatch.setattr(train.Run, "update", update)
    assert command.main(arguments(out, "--eval-every", "5")) == 130
    assert "everything up to update 4 of 10" in capsys.readouterr().err
    assert load_run(out)[3].step == 4
    monkeypatch.undo()
    assert command.main([*arguments(out, "--eval-every", "5"), "--resume"]) == 0
    assert parameters(out) == parameters(whole[0])


def test_several_sets_weights_to_start_from_and_refusals(whole, tmp_path, capsys):
    both = "drawn?count=20&style=short drawn?count=14&style=full"
    first = str(whole[0] / "checkpoints" / "step_00000010" / "parameters.safetensors")
    for mixing in ("accumulate", "round_robin", "merged"):
        said: list[str] = []
        argv = arguments(tmp_path / mixing, "--mixing", mixing, "--steps", "4", "--text-depth", "2", "--init", first,
                         data=both)
        assert command.main([*argv, "--accumulate", "2", "--checkpoint-activations"], say=said.append) == 0
        seen = [r for r in rows(tmp_path / mixing) if r["kind"] == "train"][-1]
        assert seen["examples"] == (48 if mixing == "accumulate" else 24)
        assert ("loss/1:" in str(seen)) == (mixing == "accumulate")
        assert "dropped 0, drawn anew 15\n" in "\n".join(said) and "  drawn   text.blocks.1.attn.key.weight" in "\n".join(said)
    capsys.readouterr()
    for argv, words in [
        (arguments(whole[0]), "holds a run already"),
        ([*arguments(whole[0], "--lr", "0.5"), "--resume"], "train.lr: 0.001 there, 0.5 here"),
        (arguments(tmp_path / "new", "--batch", "40"), "expected at most 20, the examples of drawn"),
        (arguments(tmp_path / "new", "--data", "shards:none*.tar"), "expected shards, found none"),
        (arguments(tmp_path), "expected a run's folder or a free name, got one with"),
        (arguments(tmp_path / "new", "--clip", "0"), "clip: expected a positive number, got 0"),
    ]:
        assert command.main(argv) == 2
        assert words in capsys.readouterr().err


@pytest.mark.slow
def test_wandb_gets_every_row_of_one_run(tmp_path, monkeypatch, capsys):
    """A stand-in for the package: what is started, sent and ended, over a crash and a resume; and where it is not installed."""
    sent, started = [], []

    class Stand(types.ModuleType):
        def init(self, **given):
            started.append(given)
            return types.SimpleNamespace(log=lambda numbers, step: sent.append((step, numbers)),
                                         finish=lambda: sent.append("end"))

    argv = arguments(tmp_path / "run", "--steps", "4", "--wandb")
    monkeypatch.setitem(sys.modules, "wandb", Stand("wandb"))
    assert run_all({}, {"commands": [(argv, 3)]})["status"].tolist() == [-1]
    assert command.main([*argv, "--resume"]) == 0
    assert [step for step, numbers in (x for x in sent if x != "end") if "train/loss" in numbers] == [1, 2, 3, 4]
    assert "eval/drawn-validation/t2i_r1" in sent[-2][1] and sent[-1] == "end"
    first, second = started
    assert first["id"] == second["id"] and first["name"] == "run" and first["config"]["train"]["steps"] == 4
    monkeypatch.setitem(sys.modules, "wandb", None)       # as where it is not installed
    assert command.main(arguments(tmp_path / "other", "--wandb")) == 2
    assert "--wandb: needs the package wandb, found no module wandb: pip install wandb" in capsys.readouterr().err


def test_tensorboard_has_every_row_after_a_resume(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator",
                                      reason="tensorboard is not installed: what is written for it is not read")
    for steps in ("2", "2"):                              # the second finds nothing left to do, and must delete nothing
        assert command.main(arguments(tmp_path / "run", "--steps", steps, "--tensorboard", "--resume")) == 0
    found = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    assert [event.step for event in found.Scalars("train/loss")] == [1, 2]
