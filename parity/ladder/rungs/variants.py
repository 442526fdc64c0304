"""The trainer's shortcuts against its plain way: compiled, checkpointed, in parts.  What they may differ by is rounding."""

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from parity.ladder.rungs.record import Pass, recorded
from parity.ladder.rungs.setup import NotRun, Row, Setup
from parity.ladder.rungs.whole import (
    DTYPES,
    TOY,
    WIDE,
    Drawn,
    draw,
    measured,
    on_host,
    rows,
    step_by_step,
    torch_batch,
    trainer_model,
    trainer_run,
)
from parity.vectors import budgets


def against(want: Mapping[str, np.ndarray], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The budgets of `wanted`, around another run's values."""
    return {name: replace(wanted[name], want=budgets.to_float64(x)) for name, x in want.items()}


def compiler() -> str | None:
    """The C++ compiler that torch.compile would call, or None."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def compiled(setup: Setup) -> Iterator[Row]:
    """The model and the loss through torch.compile, against eager."""
    if setup.device == "cpu" and compiler() is None:
        raise NotRun("torch.compile needs a C++ compiler (such as g++), and there is none on the PATH")
    config = replace(TOY, vision_depth=1, text_depth=1) if setup.quick else TOY
    drawn = draw(setup, config, 5, config.max_tokens)
    budgeted = measured(setup, drawn, low=("float32", "bfloat16"))
    for dtype in ("float32",) if setup.quick else DTYPES:
        torch._dynamo.reset()
        eager = trainer_run(setup, drawn, dtype)
        got = trainer_run(setup, drawn, dtype, wrap=torch.compile)
        again = None if dtype == "float64" else partial(_compiled_again, setup, drawn)
        yield from rows(got, against(eager, budgeted), dtype, "trainer, compiled", again=again)
    torch._dynamo.reset()
    setup.note(f"backend inductor, the model compiled and the losses as they are, {'float32' if setup.quick else 'all three'}")


def _compiled_again(setup, drawn):
    torch._dynamo.reset()
    return trainer_run(setup, drawn, "float64", wrap=torch.compile)


def checkpointing(setup: Setup) -> Iterator[Row]:
    """Blocks computed again in backward against blocks kept."""
    drawn = draw(setup, TOY, 5, TOY.max_tokens)
    budgeted = measured(setup, drawn)
    ways: dict[str, dict[str, Any]] = {"checkpointed": {"options": {"checkpoint": True}},
                                       "fine-grained loss in chunks": {"fine_chunk": 2}}
    for dtype in WIDE:
        want = against(trainer_run(setup, drawn, dtype), budgeted)
        for way, options in ways.items():
            yield from rows(trainer_run(setup, drawn, dtype, **options), want, dtype, f"trainer, {way}",
                            again=partial(trainer_run, setup, drawn, "float64", **options))
    for way, options in ways.items():
        yield from step_by_step(setup, drawn, partial(trainer_run, **options), f"trainer, {way}")


def accumulation(setup: Setup) -> Iterator[Row]:
    """A batch in parts against the whole batch: exact for the global loss too, whose negatives are the whole batch's."""
    drawn = draw(setup, TOY, 5, TOY.max_tokens)
    budgeted = measured(setup, drawn)
    for dtype in WIDE:
        want = by_backward(setup, drawn, dtype, accumulate=1)
        for parts in (2, 5):
            again = partial(by_backward, setup, drawn, "float64", accumulate=parts)
            yield from rows(by_backward(setup, drawn, dtype, accumulate=parts), against(want, budgeted), dtype,
                            f"trainer, {parts} parts", again=again)
    for parts in (2, 5):
        yield from step_by_step(setup, drawn, partial(by_backward, accumulate=parts), f"trainer, {parts} parts", 1.0)


def by_backward(
    setup: Setup, drawn: Drawn, dtype: str, record: list[Pass] | None = None, **options: Any
) -> dict[str, np.ndarray]:
    """Loss and gradients as a training step takes them."""
    model = trainer_model(setup, drawn, dtype)
    autocast = torch.bfloat16 if dtype == "mixed" else None
    with recorded(model, record):
        loss = setup.trainer.optim.backward(model, torch_batch(drawn, dtype, setup.device), autocast=autocast, **options)
    grads = setup.trainer.model.dump_grads(model)
    return on_host({"loss": loss} | {f"grad.{name}": grads[name] for name in drawn.params}, drawn.mask)
