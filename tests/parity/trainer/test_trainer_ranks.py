"""World size 1 against 2 and 4: the loss and every gradient of the whole batch, whatever the form; and faults are seen."""

import time
from dataclasses import replace

import numpy as np
import pytest
from rank_tasks import FAULTS
from test_model import TOY
from test_trainer_loss import seven
from test_trainer_model import all_close
from witness import close

from parity.trainer import launch, ranks
from parity.trainer.ranks import cases_over_ranks, losses_over_ranks, run_ranks
from sparc_ref import forward

CONFIG = replace(TOY, temperature="separate")
FORMS = {"plain": {}, "gathered": {"form": "gathered"}, "chunked": {"form": "chunked", "chunk": 2}}
CASES = {f"{form}, {r}": how | {"reduction": r} for form, how in FORMS.items() for r in ("sample", "token")} | {
    "fine-grained loss in chunks": {"fine_chunk": 2, "form": "gathered"},
    "one rank holds almost all": {"form": "gathered", "reduction": "token", "sizes": [6, 1]},
    "unequal, chunked": {"form": "chunked", "chunk": 4, "sizes": [2, 5]},
    "DistributedDataParallel": {"ddp": True, "form": "chunked"},
    "DistributedDataParallel, plain": {"ddp": True},
    "two parts a rank": {"accumulate": 2, "form": "gathered"},
    "two parts a rank, DistributedDataParallel": {"accumulate": 2, "ddp": True, "form": "chunked", "chunk": 3},
    "checkpointed": {"model": {"checkpoint": True}, "ddp": True},
}


@pytest.fixture(scope="module")
def batch():
    """Parameters and seven pairs, of which one caption is nothing but padding."""
    params, (images, tokens, mask) = seven(np.random.default_rng(20240109), CONFIG)
    mask[4] = False
    return params, images, tokens, mask


@pytest.fixture(scope="module")
def alone(batch):
    """The reference on the concatenated batch, for each reduction: loss and gradients."""
    def of(reduction):
        loss, _, back = forward(*batch, replace(CONFIG, reduction=reduction))
        return float(loss), back()

    return {reduction: of(reduction) for reduction in ("sample", "token")}


@pytest.fixture(scope="module")
def two(batch):
    """One start of two processes: every case, every fault, and in each process what it says when a rank has no sample."""
    faults = {label: {"form": "gathered", "reduction": "token"} for label in FAULTS}
    return cases_over_ranks(CONFIG, *batch, 2, CASES | faults, target="rank_tasks:everything")


def equal(found, cases, alone):
    for label, case in cases.items():
        (loss, grads), (expected, gradients) = found[label], alone[case.get("reduction", "sample")]
        close(loss, expected, label, 1e-14)
        all_close(grads, gradients)


def test_ranks_equal_one_process(two, alone):
    equal(two, CASES, alone)


@pytest.mark.slow
def test_four_ranks_equal_one_process(batch, alone):
    cases = {label: form | {"reduction": "token", "sizes": [1, 3, 1, 2]} for label, form in FORMS.items()}
    equal(cases_over_ranks(CONFIG, *batch, 4, cases), cases, alone)


def test_one_rank_and_float32(batch, alone, monkeypatch):
    """The helper for a single case, in a group of one; and the parameters' dtype is the computation's."""
    params = {name: p.astype(np.float32) for name, p in batch[0].items()}

    def here(world_size, target, arrays, options, timeout):
        assert (world_size, target) == (1, "parity.trainer.ranks:losses")
        with launch.ranks("cpu"):
            return [ranks.losses(arrays, options)]

    monkeypatch.setattr(ranks, "run_ranks", here)
    loss, grads = losses_over_ranks(CONFIG, params, *batch[1:], 1, "chunked", 3, reduction="token")
    close(loss, alone["token"][0], "loss", 1e-5)
    assert {g.dtype for g in grads.values()} == {np.dtype("float32")}


def test_planted_faults_are_seen(two, alone):
    expected, gradients = alone["token"]
    for label in FAULTS:
        loss, grads = two[label]
        if label == "none":
            all_close(grads, gradients)
            continue
        with pytest.raises(AssertionError):
            close(loss, expected, "loss", 1e-14)
            all_close(grads, gradients)


def test_shares_that_do_not_sum_up_are_refused():
    with pytest.raises(ValueError, match=r"odd: sizes: expected 2 numbers that sum to 1, got \[1\]"):
        cases_over_ranks(TOY, {}, np.zeros((1, 3, 12, 12)), np.zeros((1, 5)), np.zeros((1, 5)), 2, {"odd": {"sizes": [1]}})


def test_a_childs_error_is_shown_and_the_others_are_ended():
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"(?s)rank 1 of 2 ended with 1: .*ValueError: it was the second rank, .* 3, 4"):
        run_ranks(2, "rank_tasks:fail", {"x": np.array([3, 4])}, {}, timeout=60)
    assert time.monotonic() - start < 55                  # rank 0 would have slept on
    with pytest.raises(RuntimeError, match=r"ranks \[0\] of 1 were not done in 0.5 s"):
        run_ranks(1, "rank_tasks:sleep", {}, {}, timeout=0.5)
