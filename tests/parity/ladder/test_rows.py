"""What the ladder compares, frozen: whose numbers, in which precision, how many tensors; and by which measures.

A rung that loses a side, a dtype or half of its tensors compares less and passes more easily: nothing else would notice.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from parity import vectors
from parity.ladder import climb as ladder
from parity.ladder.rungs import cuda, mixed, ranks, training, variants, whole
from parity.ladder.rungs.setup import Setup, reference_side, trainer_side
from parity.vectors import budgets

TOY = whole.Sizes("toy", 5, 7, "toy", 12, (2,))
WIDE, ALL = ("float64", "float32"), ("float64", "float32", "float16", "bfloat16")


@pytest.fixture
def toy_sizes(monkeypatch):
    for module in (whole, training, cuda, ranks):
        monkeypatch.setattr(module, "sizes", lambda setup: TOY)
        monkeypatch.setitem(whole.PRESETS, "toy", whole.TOY)


def setup(preset="quick", **more):
    return Setup(preset, "cpu", 0, reference_side(), trainer_side(), **more)


def worlds(*dtypes):
    """Every form at either reduction, and two ways more."""
    forms, reductions = ("plain", "gathered", "chunked"), ("sample", "token")
    names = [f"trainer, world 2, {form}, {reduction}" for form in forms for reduction in reductions]
    names += ["trainer, world 2, chunked, sample, fine-grained loss in chunks",
              "trainer, world 2, gathered, sample, DistributedDataParallel"]
    return {name: dict.fromkeys(dtypes, 78) for name in names}


WORLD_1 = {f"trainer, world 1, {form}, {reduction}": dict.fromkeys(WIDE, 78)
           for form in ("plain", "gathered", "chunked") for reduction in ("sample", "token")}
# (rung, preset) -> side -> dtype -> how many tensors, at toy sizes, with every frozen vector
ROWS = {
    ("ops", "quick"): {
        "reference": dict.fromkeys(ALL, 39), "trainer": dict.fromkeys(ALL, 8), "trainer, sdpa": dict.fromkeys(ALL, 2),
        "trainer, plain": dict.fromkeys(ALL, 2),
    },
    ("losses", "quick"): {
        "reference": dict.fromkeys(ALL, 27), "trainer": dict.fromkeys(ALL, 13), "trainer, plain": dict.fromkeys(ALL, 7),
        "trainer, gathered": dict.fromkeys(ALL, 7), "trainer, chunked": dict.fromkeys(ALL, 6),
    },
    ("encoders", "quick"): {
        "reference": {"float64": 79, "float32": 79, "float16": 79, "bfloat16": 76},
        "trainer": {"float64": 77, "float32": 77, "mixed": 85},
        "trainer, sdpa": dict.fromkeys(WIDE, 71), "trainer, plain": dict.fromkeys(WIDE, 71),
    },
    ("gradients", "quick"): {
        "reference": {"float64": 83, "float32": 83, "float16": 83, "bfloat16": 77},
        "trainer": {"float64": 169, "float32": 169, "mixed": 102},
    },
    ("steps", "quick"): {
        "reference": dict.fromkeys(WIDE, 167), "trainer": {"float64": 418, "float32": 418, "mixed": 350},
    },
    ("ranks", "quick"): WORLD_1 | worlds("float64"),
    ("ranks", "full"): WORLD_1 | worlds(*WIDE),
    ("compile", "quick"): {"trainer, compiled": {"float32": 56}},
    ("compile", "full"): {"trainer, compiled": {"float64": 86, "float32": 86, "mixed": 86}},
    ("checkpointing", "quick"): {f"trainer, {way}": {"float64": 86, "float32": 86, "mixed": 102}
                                 for way in ("checkpointed", "fine-grained loss in chunks")},
    ("accumulation", "quick"): {f"trainer, {parts} parts": {"float64": 78, "float32": 78, "mixed": 100} for parts in (2, 5)},
    ("cupy", "quick"): {
        "reference, CuPy": {"float64": 481, "float32": 481, "float16": 27},
        "reference, torch CUDA": {"float64": 395, "float32": 395, "float16": 27, "bfloat16": 27},
    },
    ("tf32", "quick"): {f"{side}, TF32 {state}": {"float32": count} for side in ("trainer", "reference, CuPy")
                        for state, count in (("off", 86), ("on", 1))},
}  # fmt: skip
LONG = (("cupy", "quick"), ("gradients", "quick"), ("losses", "quick"), ("compile", "full"))


@pytest.mark.parametrize(("rung", "preset"), [
    pytest.param(*row, marks=pytest.mark.slow) if row in LONG else row for row in ROWS
], ids=[f"{rung}-{preset}" for rung, preset in ROWS])
def test_a_rung_compares_what_it_says(toy_sizes, monkeypatch, rung, preset):
    """Processes are one process here, and compiling is tracing: the rows are the same."""
    def one_process(setup, drawn, world, cases, dtype):
        of = {"sample": ranks.drawn_for(setup, "sample"), "token": ranks.drawn_for(setup, "token")}
        return {label: variants.by_backward(setup, of[case.get("reduction", "sample")], dtype) for label, case in cases.items()}

    monkeypatch.setattr(ranks, "over_ranks", one_process)
    monkeypatch.setattr(variants, "compiler", lambda: "none is called")
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_(model, backend="eager"))
    found: dict = {}
    for row in next(r for r in ladder.RUNGS if r.name == rung).climb(setup(preset)):
        least = found.setdefault(row.side, {}).setdefault(row.dtype, {})
        least[row.name] = min(row.budget, least.get(row.name, np.inf))
        assert row.ok or row.must_leave, row              # on a CPU there is no TF32 to be seen
    for side, each in found.items():                      # no precision is given the budgets of the next coarser one
        for dtype, top in (("float64", 1e-10), ("float32", 0.02)):
            for name, budget in each.get(dtype, {}).items():
                assert budget < top, f"{name} ({side}): {dtype} with a budget of {budget:.1e}"
            assert not each.get(dtype) or np.median(list(each[dtype].values())) < {"float64": 2e-13, "float32": 1e-4}[dtype]
    assert {side: {dtype: len(names) for dtype, names in each.items()} for side, each in found.items()} == ROWS[rung, preset]


def test_the_rungs_and_their_sizes():
    assert [(r.name, r.devices) for r in ladder.RUNGS] == [
        *((name, ("cpu", "cuda")) for name in ("ops", "losses", "encoders", "gradients", "steps", "band", "ranks", "compile",
                                               "checkpointing", "accumulation", "objectives")),
        ("entry", ("cpu", "cuda")),                       # its rows: test_entry_rung.py
        *((name, ("cuda",)) for name in ("cupy", "tf32", "vit_b_16")),
    ]  # fmt: skip
    assert whole.sizes(setup("quick")) == whole.Sizes("small", 6, 9, "tiny", 120, (2, 4))
    assert whole.sizes(setup("full")) == whole.Sizes("small", 16, 16, "small", 300, (2, 4))
    assert ranks.PARTS == {1: [7], 2: [4, 3], 4: [2, 1, 3, 1]}


# ------------------------------------------------------------------------------------------------------------- measures


def test_constants_of_the_budgets():
    """By their numbers, here and in what was frozen with them: others pass more, and need a new version."""
    manifest = vectors.read_manifest(vectors.FOLDER)
    assert budgets.SLACK == manifest["slack"] == 8
    assert budgets.FRACTION == manifest["fraction"] == 2.0**-12
    assert budgets.PROVES == 0.1
    assert budgets.EPS == {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
    assert mixed.HALF == 2.0**-9 and mixed.NEAR == 2e-6 and whole.MARGIN == 2e-5 and whole.UPSTREAM == 0.7390851332151607
    assert training.LIMIT == 1.0 and training.SCHEDULE == {"peak": 1e-3, "warmup": 4, "steps": 12}
    assert whole.BUDGET == {"float64": "float64", "float32": "float32", "mixed": "bfloat16"}


def test_frozen_budgets_are_eight_times_something_measured():
    """No budget of the manifest is below eight units of rounding of the finest type its tensor may be returned in."""
    for case in vectors.load().values():
        for name, allowed in case.budget.items():
            assert list(allowed)[:2] == ["float64", "float32"], (case.id, name)
            assert 0.99 * 8 * budgets.EPS["float64"] <= allowed["float64"] <= 1e-9, (case.id, name)
            assert 0.99 * 8 * budgets.EPS["float32"] <= allowed["float32"] < 0.5, (case.id, name)
            assert allowed["float64"] < 1e-6 * allowed["float32"], (case.id, name)


def told(monkeypatch, module, name):
    """The calls of a function while it does what it did."""
    calls, real = [], getattr(module, name)

    def spy(*args, **more):
        calls.append((args, more))
        return real(*args, **more)

    monkeypatch.setattr(module, name, spy)
    return calls


def test_upstream_gradients_are_random(toy_sizes, monkeypatch):
    """Of every feature of both towers, a number of its own; what passes for ones need not pass for these."""
    calls = told(monkeypatch, whole, "trainer_run")
    sent = told(monkeypatch, torch.autograd, "backward")
    list(whole.encoders(setup(wanted=lambda name: False)))
    towers = [more["towers"] for _, more in calls if more.get("towers") is not None]
    assert len(towers) == len(calls) >= 3
    real = whole.draw(setup(), whole.TOY, 5, 7).mask
    for d_v, d_t in towers:
        for d in (d_v.reshape(-1), d_t[real].reshape(-1)):
            assert 0.8 < np.std(d) < 1.2 and abs(np.mean(d)) < 0.2 and len(np.unique(d)) > 0.99 * d.size
        assert not d_t[~real].any()
    for args, _ in sent:                                  # and these are what is sent
        for d, want in zip(args[1], towers[0], strict=True):
            assert np.array_equal(budgets.to_float64(d), want)


def test_a_losses_upstream_gradient_is_not_one(toy_sizes, monkeypatch):
    """A gradient without the factor that the loss was sent back with is seen in every precision."""
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda self: backward(self / whole.UPSTREAM))
    rows = list(whole.gradients(setup(wanted=lambda name: False)))
    for dtype in ("float64", "float32", "mixed"):
        assert any(not row.ok for row in rows if row.dtype == dtype and row.name.startswith(("grad.", "losses"))), dtype


@pytest.mark.slow
def test_the_band_is_as_wide_as_one_unit_of_rounding_makes_it(toy_sizes, monkeypatch):
    """Computed here from the reference's two runs; a band ten times wider, or of another unit, is another one."""
    s, scenes = setup(), training.scenes
    monkeypatch.setattr(training, "scenes", lambda setup: scenes(setup, batch=4, unlike=3))
    config, params, batches = training.scenes(s)
    schedule = {"peak": 3e-4, "warmup": 2, "steps": 12}
    rng = np.random.default_rng([0, 17])
    moved = {name: p * (1 + 2.0**-23 * rng.choice([-1.0, 1.0], p.shape)) for name, p in params.items()}
    run = partial(training.reference_training, s, config, batches=batches, count=12, schedule=schedule, dtype="float32")
    plain, other = (np.array([float(run(params=p)[f"loss {i + 1}"]) for i in range(12)]) for p in (params, moved))
    off = np.maximum.accumulate(np.abs(other - plain))
    rows = list(training.band(s))
    assert [row.name for row in rows] == [f"loss, updates {i + 1}-{i + 1}" for i in range(12)]
    assert np.allclose([row.budget for row in rows], 8 * np.maximum(off, 2.0**-23 * plain) / plain, rtol=1e-9)
    assert all(row.error < row.budget < 3e-5 for row in rows)  # measured: 1e-6 to 6e-6


def test_a_rate_that_is_a_thousandth_off_leaves_the_band(toy_sizes, monkeypatch):
    s, scenes = setup(), training.scenes
    monkeypatch.setattr(training, "scenes", lambda setup: scenes(setup, batch=4, unlike=3))
    rate = s.trainer.optim.warmup_cosine

    class Optim:
        def __getattr__(self, name):
            return getattr(s.trainer.optim, name)

        def warmup_cosine(self, step, **options):
            return 1.001 * rate(step, **options)

    side = replace(s.trainer, modules=s.trainer.modules | {"optim": Optim()})
    assert not all(row.ok for row in training.band(replace(s, trainer=side)))
