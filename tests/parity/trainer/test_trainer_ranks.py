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


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_equal_one_process(batch, alone, world_size):
    cases = CASES
    if world_size == 4:
        cases = {label: form | {"reduction": "token", "sizes": [1, 3, 1, 2]} for label, form in FORMS.items()}
    for label, (loss, grads) in cases_over_ranks(CONFIG, *batch, world_size, cases).items():
        expected, gradients = alone[cases[label].get("reduction", "sample")]
        close(loss, expected, label, 1e-14)
        all_close(grads, gradients)


def test_one_rank_and_float32(batch, alone):
    """The helper for a single case, in a group of one; and the parameters' dtype is the computation's."""
    params = {name: p.astype(np.float32) for name, p in batch[0].items()}
    loss, grads = losses_over_ranks(CONFIG, params, *batch[1:], 1, "chunked", 3, reduction="token")
    close(loss, alone["token"][0], "loss", 1e-5)
    assert {g.dtype for g in grads.values()} == {np.dtype("float32")}


def test_planted_faults_are_seen(batch, alone):
    cases = {label: {"form": "gathered", "reduction": "token"} for label in FAULTS}
    expected, gradients = alone["token"]
    for label, (loss, grads) in cases_over_ranks(CONFIG, *batch, 2, cases, target="rank_tasks:losses_with_faults").items():
        if label == "none":
            all_close(grads, gradients)
            continue
        with pytest.raises(AssertionError):
            close(loss, expected, "loss", 1e-14)
            all_close(grads, gradients)


def test_a_rank_without_a_sample_is_refused_by_all():
    results = run_ranks(2, "rank_tasks:complaints", {}, {"sizes": [3, 0]}, timeout=60)
    words = [bytes(result["words"]).decode() for result in results]
    assert words == ["batch: expected at least one sample on every rank, got [3, 0]"] * 2
    with pytest.raises(ValueError, match=r"odd: sizes: expected 2 numbers that sum to 1, got \[1\]"):
        cases_over_ranks(TOY, {}, np.zeros((1, 3, 12, 12)), np.zeros((1, 5)), np.zeros((1, 5)), 2, {"odd": {"sizes": [1]}})


def test_a_childs_error_is_shown_and_the_others_are_ended():
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"(?s)rank 1 of 2 ended with 1: .*ValueError: it was the second rank, .* 3, 4"):
        run_ranks(2, "rank_tasks:fail", {"x": np.array([3, 4])}, {}, timeout=60)
    assert time.monotonic() - start < 55                  # rank 0 would have slept on
    with pytest.raises(RuntimeError, match=r"ranks \[0\] of 1 were not done in 0.5 s"):
        run_ranks(1, "rank_tasks:sleep", {}, {}, timeout=0.5)
