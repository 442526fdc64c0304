"""The trainer on two ranks: DDP and FSDP2 against one process; checkpoints that pass between them, and to other ranks."""

import json

import numpy as np
import pytest
from safetensors.numpy import load
from small_run import arguments, parameters, rows, run_all

from parity.trainer import __main__ as command
from parity.trainer.ranks import run_ranks


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One start of two processes: DDP; DDP that crashes, goes on, crashes, goes on as FSDP2; FSDP2; refusals."""
    folder = tmp_path_factory.mktemp("ranks")
    double = ["--precision", "float64", "--eval-every", "10"]
    ddp, both, fsdp = (arguments(folder / name, *double) for name in ("ddp", "both", "fsdp"))
    sharded = ["--strategy", "fsdp", "--accumulate", "2"]
    commands = [
        (ddp, None), ([*both, "--async-checkpoints"], 5), ([*both, "--resume"], 8), ([*both, "--resume", *sharded], None),
        ([*fsdp, *sharded], None), (arguments(folder / "odd", "--batch", "7"), None), (ddp, None),
    ]  # fmt: skip
    done = run_ranks(2, "small_run:run_all", {}, {"commands": commands}, timeout=1800)
    assert all(x["status"].tolist() == [0, -1, -1, 0, 0, 2, 2] for x in done), [x["status"] for x in done]
    alone = folder / "alone"
    assert command.main(arguments(alone, *double)) == 0
    return folder


def close(one: bytes, other: bytes, budget: float) -> None:
    one, other = load(one), load(other)
    assert one.keys() == other.keys()
    for name, x in one.items():
        scale = np.abs(x).max() or 1
        assert np.abs(x - other[name]).max() <= budget * scale, name


@pytest.mark.parametrize("name", ["ddp", "both", "fsdp"])
def test_any_ranks_and_any_change_of_them_give_the_same_run(runs, name):
    """In float64, where rounding cannot hide a difference: losses, norms and figures of every update, and the parameters."""
    close(parameters(runs / name), parameters(runs / "alone"), 1e-10)
    for got, want in zip(rows(runs / name), rows(runs / "alone"), strict=True):
        assert got.keys() == want.keys()
        for key, x in want.items():
            assert got[key] == (pytest.approx(x, rel=1e-9, abs=1e-12) if isinstance(x, float) else x), (key, want["step"])


def test_two_ranks_go_on_to_the_same_bits(runs):
    """Until they become FSDP2's, after the checkpoint of update 6: losses and norms of parameters and updates, every digit.
    The parameters themselves, in float32: test_trainer_slow.py."""
    for got, want in zip(rows(runs / "both")[:7], rows(runs / "ddp")[:7], strict=True):
        assert got == want


def test_one_process_goes_on_from_two(runs, tmp_path):
    """The checkpoint of update 9 of two ranks, in the middle of an epoch, on one: other batches, no sample lost or twice."""
    import shutil

    shutil.copytree(runs / "both", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "sharded" / "step_00000010")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    said: list[str] = []
    argv = [*arguments(tmp_path / "run", "--precision", "float64", "--eval-every", "10"), "--resume"]
    assert command.main(argv, say=said.append) == 0
    assert any("which 2 ranks wrote; the rest of the epoch is dealt anew" in text for text in said)
    about = json.loads((tmp_path / "run" / "sharded" / "step_00000010" / "trainer.json").read_text())
    # 20 examples, 3 batches of 6 an epoch: update 9 ended an epoch's batches, so that update 10 began the next
    assert about["streams"][0]["epoch"] == 3 and about["streams"][0]["used"] == [6]


def test_run_all_is_what_it_says():
    """The crash is one: nothing of the run is saved by it."""
    with pytest.raises(KeyError):
        run_all({}, {})
