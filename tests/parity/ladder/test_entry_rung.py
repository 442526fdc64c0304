"""The rung that starts the trainer as a person does: it passes, and a setting that differs, or data that does, is seen."""

from dataclasses import replace

import pytest
import torch

from parity.ladder.rungs import entry, whole
from parity.ladder.rungs.setup import Setup, reference_side, trainer_side
from parity.trainer import loss

ALONE, OVER_RANKS, WANTED = entry.ALONE, entry.OVER_RANKS, entry.wanted
TOY = replace(whole.TOY, image_size=16, temperature="shared")


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """One process, one way, float64: what ranks do is in test_train_ranks.py and in the ladder itself."""
    monkeypatch.setattr(entry, "sizes", lambda setup: whole.Sizes("toy", 5, 7, "toy", 12, (2,)))
    monkeypatch.setitem(entry.PRESETS, "toy", TOY)
    monkeypatch.setattr(entry, "ALONE", {"": ""})
    monkeypatch.setattr(entry, "OVER_RANKS", {})
    monkeypatch.setattr(entry, "wanted", lambda how: ("float64",))
    whole_compared = entry.compared
    monkeypatch.setattr(entry, "compared", lambda *given: whole_compared(*given) if given[-1] else iter(()))


def test_the_ways_and_their_precisions():
    """Frozen: a way that is lost compares less, and nothing else would notice."""
    every = ("float64", "float32", "mixed")
    assert {how: WANTED(how) for how in (*ALONE, *entry.COMPILED, *OVER_RANKS)} == {
        "": every, "2 parts, checkpointed, chunked": every[:1], "compiled": ("float32",), "ddp": every, "fsdp": every,
        "ddp, 2 parts, chunked": every[:1], "fsdp, 2 parts, checkpointed": every[:1],
        **dict.fromkeys(("bf16 stream", "ddp, bf16 stream", "fsdp, bf16 stream, checkpointed"), ("mixed",))}
    assert entry.COUNT == 3 and entry.BATCH == 8


def climbed(more: str = "") -> list:
    return list(entry.entry(Setup("quick", "cpu", 0, reference_side(), trainer_side()), more))


def test_the_trainer_passes():
    rows = climbed()
    assert all(row.ok and row.proves for row in rows), [row for row in rows if not row.ok][:3]
    assert {row.name for row in rows} >= {"loss 1", "loss 3", "norm 2", "after 3.theta", "after 3.vision.positions"}
    assert {row.side for row in rows} == {"trainer, world 1, plain"}
    config = replace(TOY, vocab_size=38)                  # of the scenes' words
    assert len(rows) == 2 * entry.COUNT + len(whole.parameter_shapes(config))


@pytest.mark.slow
def test_compiled_blocks_change_nothing(monkeypatch):
    """Compiling is tracing here: what the trainer does around it, padding, names and saving, is the same."""
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_(module, backend="eager"))
    monkeypatch.setattr(loss, "compiled_token_losses", lambda: torch.compile(loss.token_losses, backend="eager"))
    monkeypatch.setattr(entry, "ALONE", {"": "--compile"})
    rows = climbed()
    assert all(row.ok and row.proves for row in rows), [row for row in rows if not row.ok][:3]


@pytest.mark.parametrize(("fault", "first"), [
    ("--beta2 0.97", ("loss 2", "loss 3")), ("--clip 0.3", ("loss 2", "loss 3")), ("--lambda-f 1.01", ("loss 1",)),
    ("--data 'drawn?count=20&captions=1&style=short'", ("loss 1",)),
])  # fmt: skip
def test_what_differs_is_seen(fault, first):
    failing = [row.name for row in climbed(fault) if not row.ok]
    assert failing and failing[0] in first, failing[:3]
