"""Training on both sides: ten updates number by number, then a run whose losses must stay in a measured band."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from parity.ladder.rungs import mixed, replay
from parity.ladder.rungs.judge import judge
from parity.ladder.rungs.record import Pass, recorded
from parity.ladder.rungs.rounded import BITS, Rounded
from parity.ladder.rungs.setup import NotRun, Row, Setup
from parity.ladder.rungs.whole import (
    BUDGET,
    DTYPES,
    WIDE,
    Drawn,
    cast,
    draw,
    nudge,
    rows,
    sizes,
    torch_batch,
    trainer_model,
)
from parity.vectors import budgets
from sparc_ref.data import Batches, DrawnScenes, WordTokenizer
from sparc_ref.model import PRESETS, init_params

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]
SCHEDULE = {"peak": 1e-3, "warmup": 4, "steps": 12}
LIMIT = 1.0                         # of the gradients' norm


# ------------------------------------------------------------------------------------------------------- both trainers


def reference_training(
    setup: Setup, config: Any, params: dict, batches: list[Batch], count: int, dtype: str, schedule: dict,
    keep: Callable[[int], bool] = lambda step: False,
) -> dict[str, np.ndarray]:
    """The reference's updates.      -> "loss i", "norm i", and after updates to keep "after i.NAME", i = 1, 2, ...

    "bfloat16": products as under autocast; parameters and optimiser stay float32.
    """
    optim, forward = setup.reference.optim, setup.reference.model.forward
    params = {name: np.asarray(cast(p, "float64" if dtype == "float64" else "float32")) for name, p in params.items()}
    state = optim.adamw_init(params)
    found: dict[str, np.ndarray] = {}
    for step in range(count):
        images, tokens, mask = batches[step % len(batches)]
        p = {name: cast(np.asarray(x, np.float64), dtype) for name, x in params.items()} if dtype in BITS else params
        loss, _, back = forward(p, cast(images, dtype), tokens, mask, config)
        grads = {name: np.asarray(g) if isinstance(g, Rounded) else g for name, g in back().items()}
        grads, norm = optim.clip_by_global_norm(grads, LIMIT)
        params, state = optim.adamw_step(params, grads, state, optim.warmup_cosine(step, **schedule))
        params = optim.clamp_theta(params)
        found |= {f"loss {step + 1}": np.asarray(loss), f"norm {step + 1}": np.asarray(norm)}
        if keep(step + 1):
            found |= {f"after {step + 1}.{name}": np.array(p) for name, p in params.items()}
    return found


def trainer_training(
    setup: Setup, config: Any, params: dict, batches: list[Batch], count: int, dtype: str, schedule: dict,
    keep: Callable[[int], bool] = lambda step: False,
) -> dict[str, np.ndarray]:
    """The trainer's, by the same names."""
    t, wide = setup.trainer, torch.float64 if dtype == "float64" else torch.float32
    model = t.model.load_params(t.model.SPARC(config).to(setup.device, wide), params)
    optimizer = t.optim.make_adamw(model, SCHEDULE["peak"])
    found: dict[str, np.ndarray] = {}
    for step in range(count):
        images, tokens, mask = (torch.tensor(x, device=setup.device) for x in batches[step % len(batches)])
        said = t.optim.train_step(model, (images.to(wide), tokens, mask), optimizer, t.optim.warmup_cosine(step, **schedule),
                                  clip=LIMIT, autocast=torch.bfloat16 if dtype == "mixed" else None)
        found |= {f"loss {step + 1}": said["loss"].cpu().numpy(), f"norm {step + 1}": said["norm"].cpu().numpy()}
        if keep(step + 1):
            found |= {f"after {step + 1}.{name}": p for name, p in t.model.dump_params(model).items()}
    return found


# ---------------------------------------------------------------------------------------------------------- ten updates


def steps(setup: Setup, count: int = 10) -> Iterator[Row]:
    """Losses, gradient norms and parameters over ten AdamW updates: warm-up and cosine, clipping, decay, both corrections."""
    yield from replay.inside(setup, "steps")
    config, s = PRESETS[sizes(setup).training_model], sizes(setup)
    drawn = [draw(replace(setup, seed=setup.seed + i), config, s.batch, s.tokens) for i in range(count)]
    batches, params = [d.batch for d in drawn], drawn[0].params
    keep = (1, 2, count).__contains__
    run = partial(reference_training, setup, config, count=count, schedule=SCHEDULE, keep=keep)

    def several(dtype):
        runs = [run(params=params, batches=batches, dtype=dtype)]
        if dtype == "float32":
            reverse = [tuple(x[::-1] for x in batch) for batch in batches]
            runs.append(run(params=params, batches=reverse, dtype=dtype))
            runs.append(run(params=nudge(params, dtype, setup.seed), batches=batches, dtype="float64"))
        return runs

    want = pooled(budgets.measure(several, ("float32",)), count)
    for dtype in WIDE:
        got = trainer_training(setup, config, params, batches, count, dtype, SCHEDULE, keep)
        again = partial(trainer_training, setup, config, params, batches, count, "float64", SCHEDULE, keep)
        yield from rows(got, want, dtype, "trainer", again=again)
    yield from mixed_steps(setup, drawn, keep)


def mixed_steps(setup: Setup, drawn: list[Drawn], keep: Callable[[int], bool]) -> Iterator[Row]:
    """The same updates under autocast, each judged from where the trainer stood before it: see mixed.py.

    Losses, gradients and norms step by step; parameters by the reference's AdamW on the trainer's own gradients.
    """
    for attempt in range(10):
        if attempt:
            seeds = [setup.seed + 1000 * attempt + i for i in range(len(drawn))]
            drawn = [draw(replace(setup, seed=seed), d.config, *d.mask.shape) for seed, d in zip(seeds, drawn)]
        ran, found = recorded_steps(setup, drawn)
        if all(mixed.threshold_distance(setup, d, each) > mixed.NEAR for d, each in zip(drawn, ran)):
            break
    else:
        raise NotRun(f"no {len(drawn)} batches keep {mixed.NEAR} between their bfloat16 similarities and the threshold")
    optim = setup.reference.optim
    state: dict[type, Any] = {}
    for i, (d, each) in enumerate(zip(drawn, ran)):
        for row in mixed.rows(setup, d, each, "mixed", "trainer", 1.0, clip=LIMIT):
            yield replace(row, name=f"{row.name} {i + 1}" if row.name in ("loss", "norm") else row.name)
        rate, after = optim.warmup_cosine(i, **SCHEDULE), {}
        for kind in (np.float64, np.float32):
            params = {name: p.astype(kind) for name, p in each.passes[0].params.items()}
            grads = {name: each.grads[f"grad.{name}"].astype(kind) for name in params}
            after[kind], state[kind] = optim.adamw_step(params, grads, state.get(kind) or optim.adamw_init(params), rate)
            after[kind] = optim.clamp_theta(after[kind])
        if keep(i + 1):
            for name, want in after[np.float64].items():
                scale = budgets.scale(want)
                budget = budgets.from_measured(budgets.error(after[np.float32][name], want, scale), "float32")
                yield judge(f"after {i + 1}.{name}", "mixed", "trainer", found[i][name], want, scale, budget)


def recorded_steps(setup: Setup, drawn: list[Drawn]) -> tuple[list[mixed.Trained], list[dict[str, np.ndarray]]]:
    """The trainer's updates under autocast: what each computed on the way, and the parameters after it."""
    t = setup.trainer
    model = trainer_model(setup, drawn[0], "mixed")
    optimizer = t.optim.make_adamw(model, SCHEDULE["peak"])
    ran, after = [], []
    passes: list[Pass] = []
    with recorded(model, passes):
        for step, d in enumerate(drawn):
            before = len(passes)
            rate = t.optim.warmup_cosine(step, **SCHEDULE)
            said = t.optim.train_step(model, torch_batch(d, "mixed", setup.device), optimizer, rate, clip=LIMIT,
                                      autocast=torch.bfloat16)
            grads = {f"grad.{name}": g for name, g in t.model.dump_grads(model).items()}
            ran.append(mixed.Trained(passes[before:], {name: budgets.to_float64(x) for name, x in said.items()}, grads))
            after.append(t.model.dump_params(model))
    return ran, after


def pooled(found: dict[str, budgets.Measured], count: int) -> dict[str, budgets.Measured]:
    """Where one measurement can be small by luck, the largest of its kind counts.

    One number alone: a loss has the largest budget of the losses up to its update, of the first three at least; norms likewise.
    Adam makes a whole step even of a gradient entry near 0, whose sign and size are rounding's, in whichever tensor it is; so
    all parameters after one update share the largest absolute budget.
    """
    for kind in ("loss", "norm"):
        for dtype in found[f"{kind} 1"].budget:
            top = np.maximum.accumulate([found[f"{kind} {i + 1}"].budget[dtype] for i in range(count)])
            for i in range(count):
                found[f"{kind} {i + 1}"].budget[dtype] = float(top[max(i, min(2, count - 1))])
    for update in {name.split(".")[0] for name in found if name.startswith("after ")}:
        after = [m for name, m in found.items() if name.split(".")[0] == update]
        for dtype in after[0].budget:
            most = max(m.budget[dtype] * m.scale for m in after)
            for m in after:
                m.budget[dtype] = most / m.scale
    return found


# ------------------------------------------------------------------------------------------------------------- the band


def band(setup: Setup) -> Iterator[Row]:
    """The tiny model on drawn scenes: is the trainer's loss where the reference's own rounding could have put it?

    Training amplifies rounding, so the band is measured: the reference runs again from weights that were each moved by one
    unit of rounding, up or down at random, and the largest distance of the loss from its unmoved run, up to each update,
    times SLACK, is how far the trainer may be.  The first tenth of a run shares its last width.  Mixed precision: the distance
    of runs with bfloat16 products from the float32 run.
    """
    count = sizes(setup).updates
    config, params, batches = scenes(setup)
    # gentle: at 1e-3, rounding grows to 3e-3 of loss within 90 updates, here to 6e-5
    schedule = {"peak": 3e-4, "warmup": max(2, count // 10), "steps": count}
    tenth = max(1, count // 10)
    for dtype in ("float32",) if setup.quick else DTYPES:
        centre, width = measured_band(setup, config, params, batches, count, schedule, BUDGET[dtype])
        got = losses(trainer_training(setup, config, params, batches, count, dtype, schedule), count)
        for start in range(0, count, tenth):
            at = start + int(np.argmax((np.abs(got - centre) / width)[start : start + tenth]))

            yield Row(f"loss, updates {start + 1}-{min(count, start + tenth)}", dtype, "trainer",
                      error=float(abs(got[at] / centre[at] - 1)), budget=float(width[at] / abs(centre[at])),
                      where=f"update {at + 1}: got {got[at]:.6g}, want {centre[at]:.6g}",
                      again=partial(_band_again, setup, config, params, batches, at, schedule))
        setup.note(f"{dtype}: {count} updates of the tiny model on drawn scenes, batch {len(batches[0][0])}; reference from "
                   f"{centre[0]:.3f} to {centre[-1]:.3f}, trainer to {got[-1]:.3f}; the band is "
                   f"±{width[tenth]:.1e} after a tenth of the run and ±{width[-1]:.1e} at its end")
        if dtype == "float32":
            setup.series({"title": "loss of the reference and of the trainer", "y": "loss", "lines": {"reference": list(centre),
                          "trainer": list(got)}, "band": [[c - w, c + w] for c, w in zip(centre, width)]})


def _band_again(setup, config, params, batches, at, schedule):
    """The same update in float64."""
    centre, width = measured_band(setup, config, params, batches, at + 1, schedule, "float64")
    got = losses(trainer_training(setup, config, params, batches, at + 1, "float64", schedule), at + 1)
    return float(abs(got[at] / centre[at] - 1)), float(width[at] / abs(centre[at]))


def measured_band(
    setup: Setup, config: Any, params: dict, batches: list[Batch], count: int, schedule: dict, dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    """The reference's losses, and how far rounding in `dtype` may move them.      -> (count,), (count,)"""
    run = partial(reference_training, setup, config, batches=batches, count=count, schedule=schedule)
    plain = "float32" if dtype == "bfloat16" else dtype
    centre = losses(run(params=params, dtype=plain), count)
    seeds = range(setup.seed, setup.seed + (1 if setup.quick else 2))
    unit = "float64" if dtype == "float64" else "float32"
    moved = [losses(run(params=nudge(params, unit, seed), dtype=dtype), count) for seed in seeds]
    width = np.maximum.accumulate(np.max(np.abs(np.array(moved) - centre), 0))
    tenth = max(1, count // 10)
    width[:tenth] = width[tenth - 1]
    return centre, budgets.SLACK * np.maximum(width, budgets.EPS[dtype] * np.abs(centre))


def losses(found: dict, count: int) -> np.ndarray:
    return np.array([float(found[f"loss {i + 1}"]) for i in range(count)])


def scenes(setup: Setup, batch: int = 12, unlike: int = 20) -> tuple[Any, dict, list[Batch]]:
    """The tiny model's configuration for drawn scenes, its initial parameters, and batches that are used over and over."""
    data = DrawnScenes(count=batch * unlike, seed=setup.seed)
    tokenizer = WordTokenizer.from_texts(text for i in range(len(data)) for text in data[i].captions)
    config = replace(PRESETS["tiny"], vocab_size=tokenizer.vocab_size)
    source = Batches(data, tokenizer, batch, seed=setup.seed, max_tokens=config.max_tokens)
    batches = [(b.images.astype(np.float64), b.tokens, b.mask) for b in (next(source) for _ in range(unlike))]
    params = init_params(config, np.random.default_rng(setup.seed))
    return config, {name: p.astype(np.float64) for name, p in params.items()}, batches


