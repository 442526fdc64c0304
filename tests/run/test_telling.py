"""What a run says of itself: how far it is, how long it takes yet, where it runs, what its numbers are, what is left of it."""

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from sparc_ref.data import DrawnScenes, WordTokenizer
from sparc_ref.model import PRESETS
from sparc_ref.run import telling
from sparc_ref.run.train import TrainConfig


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(telling.time, "perf_counter", lambda: clock.now)
    return clock


def test_a_line_every_twentieth_of_the_way_with_what_is_left(clock):
    """A resumed run: two seconds for each update since it went on at the 20th."""
    said = []
    with telling.progress(99, 20, said.append) as bar:
        for step in range(21, 100):
            clock.now += 2
            bar(step, step / 100)
    lines = [re.fullmatch(r"update (\d+)/99, loss ([\d.]+) nats on its batch, (\d+ (?:s|min)) left", line) for line in said]
    wanted = [*range(24, 97, 4), 99]
    assert [line.groups() for line in lines] == [
        (str(step), f"{step / 100:.4f}", telling.duration(2 * (99 - step))) for step in wanted]


def test_the_bar_stands_where_the_run_is(monkeypatch):
    bars = []

    class Bar:
        def __init__(self, total, initial, **how):
            self.total, self.n, self.closed = total, initial, False
            bars.append(self)

        def set_postfix(self, loss, refresh):
            self.loss = loss

        def update(self, more):
            self.n += more

        def close(self):
            self.closed = True

    monkeypatch.setattr("tqdm.tqdm", Bar)
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: True))
    with telling.progress(50, 20, print) as show:
        (bar,) = bars
        assert (bar.total, bar.n) == (50, 20)
        for step in (21, 22, 25):
            show(step, step / 10)
            assert bar.n == step and bar.loss == f"{step / 10:.3f}"
    assert bar.closed


@pytest.mark.parametrize("seconds, said", [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7140, "119 min"), (7200, "2.0 h"),
                                           (9000, "2.5 h")])
def test_durations(seconds, said):
    assert telling.duration(seconds) == said


def test_what_the_numbers_are_called():
    """A caption's nearest picture is t2i, a picture's nearest caption i2t."""
    said = {"i2t_r1": "share of pictures whose nearest caption", "t2i_r1": "share of captions whose nearest picture",
            "miou": "masks", "pointing": "share of names whose top patch", "mass": "share of a name's weight",
            "grounding_gap": "shuffled minus true"}
    assert telling.SHOWN.keys() == said.keys() and all(words in telling.SHOWN[key][1] for key, words in said.items())
    assert telling.brief({key: n / 10 for n, key in enumerate(said)}) == (
        "R@1 i2t 0.000, t2i 0.100, mIoU 0.200, pointing 0.300, mass 0.400, grounding gap 0.500")


@pytest.mark.parametrize("device, where", [("cpu", "NumPy on the CPU"), ("cuda", "CuPy on the GPU")])
@pytest.mark.parametrize("step, how", [(0, "training: "), (7, "resuming at update 7: ")])
def test_where_a_run_runs_and_from_where_on(device, where, step, how):
    data = DrawnScenes(size=16, count=4)
    text = telling.announce(PRESETS["tiny"], TrainConfig(), [data], WordTokenizer(data.vocabulary()), "runs/x", device,
                            {"a": np.zeros((3, 4))}, step)
    assert text.startswith(f"{how}12 parameters, float32, {where}; everything goes to runs/x/")


def test_what_is_left_is_the_newest_checkpoint(tmp_path):
    assert telling.remedy(tmp_path).startswith("No checkpoint had been written. Lower --lr")
    for step in (2, 10, 9):
        (tmp_path / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
    assert telling.remedy(tmp_path).startswith(f"{tmp_path}/checkpoints/step_00000010 is kept. Lower --lr")
