"""Frozen vectors, replayed through the reference and through the trainer, tensor by tensor in forward order."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from parity import vectors
from parity.ladder.rungs.judge import BY_FACTOR, is_gradient, judge
from parity.ladder.rungs.reconverge import harmless
from parity.ladder.rungs.rounded import rounded
from parity.ladder.rungs.setup import NotRun, Row, Setup, worst
from parity.ladder.rungs.trainer_calls import CALLS
from parity.vectors import budgets, runs

DTYPES = ("float64", "float32", "float16", "bfloat16")
WHOLE = ("float64", "float32")      # in which the trainer runs towers; 16-bit is autocast's there, and rungs of its own


def ops(setup: Setup) -> Iterator[Row]:
    """Single operations."""
    yield from replay(setup, "ops")


def losses(setup: Setup) -> Iterator[Row]:
    """The alignment and both losses, every option and every knife edge."""
    yield from replay(setup, "losses")


def objectives(setup: Setup) -> Iterator[Row]:
    """What SPARC is compared with, and its ablations; by the oracle, which is torch's own autograd, as well."""
    yield from replay(setup, "objectives")


def replay(setup: Setup, level: str, sides: Callable | None = None) -> Iterator[Row]:
    """Every case of a level, through the reference, then through what the trainer has of it; or through other `sides`."""
    sides = sides or both
    cases = [case for case in vectors.load(setup.vectors, level).values() if setup.wanted(case.id)]
    if not cases:
        raise NotRun(f"no vector of level {level} was asked for")
    remarks: dict[str, list[str]] = {}
    by_factor = 0
    for i, case in enumerate(cases):
        setup.tick(i / len(cases))
        lengths: dict[str, Any] = {}
        for side, call in sides(setup, case):
            for dtype in DTYPES:
                if dtype in case.dtypes and (narrow(side, case.level, dtype) or (dtype in WHOLE and side != "oracle")):
                    if dtype not in lengths:
                        lengths[dtype] = factor_twin(setup, case, dtype)
                    for row in one(case, side, dtype, call, lengths[dtype]):
                        by_factor += row.note.startswith(BY_FACTOR)
                        if row.note and not row.note.startswith(("as ", BY_FACTOR)):
                            remarks.setdefault(f"{row.name} ({row.side}) {row.note}", []).append(case.id)
                        yield row
    for remark, ids in remarks.items():
        ids = list(dict.fromkeys(ids))
        setup.note(f"{remark}; in {len(ids)} case{'s' if len(ids) > 1 else ''}, such as {ids[0]}")
    if by_factor:
        setup.note(f"{by_factor} comparisons in 16 bits: {BY_FACTOR}, for the budget of the entries proves nothing")
    too = sum(case.function in CALLS for case in cases)
    setup.note(f"{len(cases)} frozen vectors, {too} of them through the trainer as well")


def narrow(side: str, level: str, dtype: str) -> bool:
    """Whether a side runs a level in 16 bits: towers in pure 16-bit are the reference's alone; CuPy has no bfloat16.  The
    oracle, which is literal and not careful, is asked in float64 alone."""
    if side == "oracle":
        return dtype == "float64"
    if side == "reference":
        return True
    if level == "ops":
        return side.startswith("trainer")
    return level == "losses" and not (dtype == "bfloat16" and "CuPy" in side)


def both(setup: Setup, case: vectors.Case) -> Iterator[tuple[str, Callable]]:
    """Whose turn it is, and how it is called: call(case, dtype) -> arrays by full name."""
    yield "reference", partial(by_reference, setup)
    for name, trainer in CALLS.get(case.function, {}).items():
        if name == "oracle" and setup.device != "cpu":
            continue
        yield name, partial(by_trainer, setup, trainer)


def given(case: vectors.Case, prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): x for name, x in case.tensors.items() if name.startswith(prefix)}


def by_reference(
    setup: Setup, case: vectors.Case, dtype: str, cast: Callable[[np.ndarray, str], Any] | None = None
) -> dict[str, Any]:
    """On NumPy arrays, and where NumPy has no such dtype on torch's; or on what cast(x, dtype) makes of a host array."""
    made = cast or (lambda x, dtype: runs.cast(x, "torch" if dtype == "bfloat16" else "numpy", dtype))
    with np.errstate(all="ignore"):
        inputs = {name: made(x, dtype) for name, x in given(case, "in.").items()}
        out, mid, back = setup.reference.cases.FUNCTIONS[case.function].ours(inputs, case.options)
        grads = back({name: made(x, dtype) for name, x in given(case, "ct.").items()}) if back else {}
    return named(case, mid, out, grads)


def by_trainer(setup: Setup, ask: Callable, case: vectors.Case, dtype: str) -> dict[str, Any]:
    """Gradients are autograd's."""
    import torch

    inputs = {name: runs.cast(x, "torch", dtype).to(setup.device) for name, x in given(case, "in.").items()}
    wanted = [name.removeprefix("grad.") for name in case.tensors if name.startswith("grad.")]
    leaves = {name: inputs[name].requires_grad_() for name in wanted if name in inputs}
    out, mid, *grads = ask(setup.trainer, inputs, case.options)
    if grads:
        return named(case, mid, out, grads[0])
    upstream = {name: runs.cast(x, "torch", dtype).to(setup.device) for name, x in given(case, "ct.").items()}
    roots = [name for name in upstream if out[name].requires_grad]
    if roots:
        torch.autograd.backward([out[name] for name in roots], [upstream[name].to(out[name].dtype) for name in roots])
    return named(case, mid, out, {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in leaves.items()})


def named(case: vectors.Case, mid: Mapping, out: Mapping, grads: Mapping) -> dict[str, Any]:
    """By full name; what the case does not have is left out."""
    found = {f"mid.{n}": x for n, x in mid.items()} | {f"out.{n}": x for n, x in out.items()}
    found |= {f"grad.{n}": x for n, x in grads.items()}
    return {name: x for name, x in found.items() if name in case.budget}


def factor_twin(setup: Setup, case: vectors.Case, dtype: str) -> dict[str, tuple[np.ndarray, float]]:
    """For each gradient what its factor is taken along, and how far that may be off, measured now.

    In 16 bits: the float64 gradient of inputs that are rounded as the answer's are.  The budget of a frozen 16-bit vector holds
    what rounding the inputs does and is too wide to see a per cent; a gradient's length along this one is not.  What may be off
    is measured by the reference's own run on other arrays than those on trial: losses, which are float32 inside, in float32
    with their results rounded; what is not widened on NumPy arrays that round after every operation, and in float16 on
    torch's arrays too.  In float32 and float64: torch's arrays in float32, and float64 with inputs nudged by its rounding.
    """
    names = [name for name in case.budget if name.startswith("grad.")]
    if not names:
        return {}
    if dtype in WHOLE:
        rng = np.random.default_rng(len(case.id))

        def nudged(x, _):
            moved = 1 + budgets.EPS["float32"] * rng.choice([-1.0, 1.0], np.shape(x))
            return np.asarray(x, np.float64) * moved if np.issubdtype(x.dtype, np.floating) else x

        ours = [by_reference(setup, case, "float32", lambda x, _: runs.cast(x, "torch", "float32")),
                by_reference(setup, case, "float64", nudged)]
        want = {name: case.tensors[name] for name in names if np.all(np.isfinite(case.tensors[name]))}
        allowed = budgets.factor_budgets(want, ours, budgets.EPS["float32"])
        unit = budgets.EPS[dtype] / budgets.EPS["float32"]
        return {name: (x, allowed[name] * unit) for name, x in want.items() if math.isfinite(allowed[name])}

    def narrow(x, kind):
        x = runs.cast(x, "torch", dtype)
        return budgets.to_float64(x).astype(kind) if x.is_floating_point() else x.numpy()

    exact = by_reference(setup, case, "float64", lambda x, _: narrow(x, np.float64))
    if case.level == "losses" and case.function != "align_patches":
        own = by_reference(setup, case, "float32", lambda x, _: narrow(x, np.float32))
        owns = [{name: budgets.to_float64(runs.cast(np.asarray(x), "torch", dtype)) for name, x in own.items()}]
    else:
        owns = [by_reference(setup, case, dtype, lambda x, _: everywhere(narrow(x, np.float32), dtype))]
        owns += [by_reference(setup, case, dtype, lambda x, _: runs.cast(x, "torch", dtype))] if dtype == "float16" else []
    exact, *owns = ({n: budgets.to_float64(x) for n, x in each.items() if n.startswith("grad.")} for each in (exact, *owns))
    if not all(np.all(np.isfinite(x)) for each in (exact, *owns) for x in each.values()):
        return {}
    allowed = budgets.factor_budgets(exact, owns, budgets.EPS[dtype] / 2)
    return {name: (x, allowed[name]) for name, x in exact.items()}


def everywhere(x: np.ndarray, dtype: str) -> np.ndarray:
    return rounded(x, f"{dtype} everywhere") if x.dtype == np.float32 else x


def one(
    case: vectors.Case, side: str, dtype: str, call: Callable, lengths: Mapping[str, tuple[np.ndarray, float]] = {}
) -> Iterator[Row]:
    """One case on one side in one dtype.      lengths: factor_twin's"""
    got = call(case, dtype)
    told = {case.id: case} | {other.id: other for other in case.alternatives}
    for d in in_forward_order(vectors.compare(case, got, dtype)):
        against, note = told[d.case], "" if d.case == case.id else f"as {d.case}, which is right as well"
        error = d.error
        if not d.ok and d.name.startswith("mid."):
            found = harmless(d.name, got, against)
            if found is not None:
                fitted, why = found
                after = budgets.error(fitted, against.tensors[d.name], against.scale[d.name])
                error, note = (after, why) if after <= d.budget else (error, note)
        again = None if dtype == "float64" else partial(_again, case, side, call, d.name)
        place = where(case, d.name, got, against)
        if d.name not in got or not is_gradient(label(case, d.name)):
            yield Row(label(case, d.name), dtype, side, error, d.budget, where=place, note=note, again=again)
            continue
        mine = vectors.zero_padding(budgets.to_float64(got[d.name]), case.tensors.get("in.mask"), case.padding.get(d.name, ()))
        twin = lengths.get(d.name) if against is case else None
        yield judge(label(case, d.name), dtype, side, mine, against.tensors[d.name], against.scale[d.name], d.budget,
                    where=place, note=note, again=again, twin=twin)


def in_forward_order(differences: list[vectors.Difference]) -> list[vectors.Difference]:
    """A loss after the stages that it is made of; otherwise as they come."""
    last = {"mid.loss_global": "mid.loss_text", "mid.loss_fine": "mid.loss_tv"}
    names = [d.name for d in differences]
    place = {d.name: names.index(last[d.name]) + 0.5 if last.get(d.name) in names else i for i, d in enumerate(differences)}
    return sorted(differences, key=lambda d: place[d.name])


def _again(case, side, call, name):
    row = next(row for row in one(case, side, "float64", call) if row.name == label(case, name))
    return row.error, row.budget


def label(case: vectors.Case, name: str) -> str:
    """As in fine_grained_loss.sparse, gelu.grad.x"""
    return f"{case.function}.{name.removeprefix('mid.').removeprefix('out.')}"


def where(case: vectors.Case, name: str, got: Mapping[str, Any], against: vectors.Case) -> str:
    if name not in got:
        return f"case {case.id}: this tensor is missing"
    mine = vectors.zero_padding(budgets.to_float64(got[name]), case.tensors.get("in.mask"), case.padding.get(name, ()))
    return f"case {case.id}: {worst(mine, against.tensors[name])}"


def inside(setup: Setup, *levels: str) -> Iterator[Row]:
    """Levels as a part of another rung; nothing where none of their cases was asked for."""
    for level in levels:
        if any(setup.wanted(name) for name in vectors.load(setup.vectors, level)):
            yield from replay(replace(setup, tick=lambda share: None), level)
