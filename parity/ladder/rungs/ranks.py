"""Several processes against one: the loss of the concatenated batch and every gradient, in every form of the global loss."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from parity.ladder.rungs.setup import Row, Setup
from parity.ladder.rungs.variants import by_backward
from parity.ladder.rungs.whole import TOY, Drawn, draw, nudge, rows, share_scalars, shuffled, sizes
from parity.vectors import budgets

FORMS: dict[str, dict[str, Any]] = {
    "plain": {"form": "plain"}, "gathered": {"form": "gathered"}, "chunked": {"form": "chunked", "chunk": 3},
}
WAYS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("chunked", "fine-grained loss in chunks", {"fine_chunk": 1}),
    ("gathered", "DistributedDataParallel", {"ddp": True}),
)
PARTS = {1: [7], 2: [4, 3], 4: [2, 1, 3, 1]}  # how many samples each rank holds: unlike numbers


def ranks(setup: Setup) -> Iterator[Row]:
    """The reference on the whole batch against one, two and four gloo processes that hold parts of it."""
    for reduction in ("sample", "token"):
        yield from one_process(setup, drawn_for(setup, reduction))
    for world in sizes(setup).worlds:
        for dtype in ("float64",) if setup.quick else ("float64", "float32"):
            yield from processes(setup, world, dtype)
    setup.note(f"gloo on this machine, {' and '.join(map(str, sizes(setup).worlds))} processes with unlike shares of 7 samples")


def drawn_for(setup: Setup, reduction: str) -> Drawn:
    return draw(setup, replace(TOY, reduction=reduction), sum(PARTS[1]), TOY.max_tokens)


def whole_batch(setup: Setup, drawn: Drawn) -> dict[str, budgets.Measured]:
    """The reference's loss and gradients on the concatenated batch, and their budgets."""

    def run(dtype):
        runs = [(drawn, dtype)]
        if dtype == "float32":                            # as in whole.measured
            runs += [(shuffled(drawn, np.arange(len(drawn.mask))[::-1]), dtype)]
            runs += [(replace(drawn, params=nudge(drawn.params, dtype, setup.seed)), "float64")]
        for each, wide in runs:
            params = {name: p.astype(wide) for name, p in each.params.items()}
            images, tokens, mask = each.batch
            loss, _, back = setup.reference.model.forward(params, images.astype(wide), tokens, mask, each.config)
            yield {"loss": np.asarray(loss)} | {f"grad.{name}": g for name, g in back().items()}

    return share_scalars(budgets.measure(run, ("float32",)))


def one_process(setup: Setup, drawn: Drawn) -> Iterator[Row]:
    """World size 1, in this process: every form is the same loss."""
    want = whole_batch(setup, drawn)
    for form, options in FORMS.items():
        for dtype in ("float64", "float32"):
            yield from rows(by_backward(setup, drawn, dtype, **options), want, dtype, side(1, form, drawn),
                            again=partial(by_backward, setup, drawn, "float64", **options))


def processes(setup: Setup, world: int, dtype: str) -> Iterator[Row]:
    """World size 2 or 4, both reductions and every form in one start of the processes."""
    drawn = drawn_for(setup, "sample")
    cases = {f"{form}, {reduction}": options | {"reduction": reduction}
             for reduction in ("sample", "token") for form, options in FORMS.items()}
    cases |= {f"{form}, sample, {how}": FORMS[form] | more for form, how, more in WAYS if form in FORMS}
    found = over_ranks(setup, drawn, world, cases, dtype)
    want = {reduction: whole_batch(setup, drawn_for(setup, reduction)) for reduction in ("sample", "token")}
    for label, got in found.items():
        again = None if dtype == "float64" else partial(_again, setup, drawn, world, label, cases[label])
        yield from rows(got, want["token" if ", token" in label else "sample"], dtype, f"trainer, world {world}, {label}",
                        again=again)


def _again(setup, drawn, world, label, case):
    return over_ranks(setup, drawn, world, {label: case}, "float64")[label]


def over_ranks(
    setup: Setup, drawn: Drawn, world: int, cases: Mapping[str, dict], dtype: str
) -> dict[str, dict[str, np.ndarray]]:
    """label -> loss and gradients by name."""
    ranks = setup.trainer.ranks
    params = {name: p.astype(dtype) for name, p in drawn.params.items()}
    held = {label: {"sizes": PARTS[world]} | case for label, case in cases.items()}
    found = ranks.cases_over_ranks(drawn.config, params, drawn.images.astype(dtype), drawn.tokens, drawn.mask, world, held,
                                   target=f"{ranks.__name__}:losses")
    return {label: {"loss": np.asarray(loss)} | {f"grad.{name}": g for name, g in grads.items()}
            for label, (loss, grads) in found.items()}


def side(world: int, form: str, drawn: Drawn) -> str:
    return f"trainer, world {world}, {form}, {drawn.config.reduction}"
