"""Mixed precision proves something: the replay is right where nothing is rounded, sound runs pass, small faults do not.

Faults are planted in the trainer's text and act under autocast alone, where float64 and float32 cannot see them.
"""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from parity.ladder.rungs import arithmetic, judge, mixed, record, replay, rounded, training, variants, whole
from parity.ladder.rungs.setup import Setup, reference_side, trainer_side
from parity.vectors import budgets
from sparc_ref import ops
from tests.parity.ladder.test_planted_faults import copies, planted_trainer  # noqa: F401  copies is a fixture

TOY = whole.Sizes("toy", 5, 7, "toy", 12, (2,))


@pytest.fixture(autouse=True)
def toy_sizes(monkeypatch):
    for module in (whole, training):
        monkeypatch.setattr(module, "sizes", lambda setup: TOY)
        monkeypatch.setitem(whole.PRESETS, "toy", whole.TOY)


@pytest.fixture(scope="module")
def small():
    return Setup("quick", "cpu", 0, reference_side(), trainer_side(), wanted=lambda name: False)


def recorded_run(setup, drawn, dtype):
    passes = []
    found = whole.trainer_run(setup, drawn, dtype, record=passes)
    return mixed.Trained(passes, {n: found[n] for n in whole.LOSSES}, {n: g for n, g in found.items() if n.startswith("grad.")})


def test_without_rounding_the_replay_is_the_trainer_to_the_last_digits(small):
    """Every step and gradient in float64: where the replay takes its steps from is where the trainer takes them."""
    drawn = whole.draw(small, whole.TOY, 5, 7)
    rows = list(mixed.rows(small, drawn, recorded_run(small, drawn, "float64"), "float64", "trainer", whole.UPSTREAM))
    assert all(row.ok and row.budget < 1e-13 for row in rows)
    assert {row.name for row in rows} >= {f"grad.{name}" for name in drawn.params} | {*whole.FEATURES, *whole.LOSSES}


def test_every_step_is_replayed(small):
    """Forward order, then gradients as they arrive; the parts of a block are named where one is off."""
    drawn = whole.draw(small, whole.TOY, 5, 7)
    found = list(mixed.compared(small, drawn, recorded_run(small, drawn, "mixed"), "mixed", whole.UPSTREAM))
    names = [name for name, *_ in found]
    parts = ["norm1.out", "attn.out.in", "attn.out.out", "norm2.in", "norm2.out", "mlp.up.out", "mlp.down.in", "mlp.down.out"]
    for tower in ("vision", "text"):
        for i in range(2):
            block = f"{tower}.blocks.{i}"
            assert [n for n in names if n.startswith(f"{block}:")] == [f"{block}: {p}" for p in (*parts, "out")]
            back = [n.split(": ")[1] for n in names if n.startswith(f"{tower}.blocks.{i}, backward")]
            assert sorted(back) == sorted([*parts, "norm1.in"])
    assert names.index("loss") < names.index("losses, backward: v") < names.index("heads, backward: h_v.out")
    assert names.index("vision.blocks.1, backward: norm2.in") < names.index("vision.blocks.0, backward: norm2.in")
    assert names.index("vision.blocks.0, backward: norm1.in") < names.index("grad.vision.patch.weight")


def test_budgets_are_a_rounding_and_an_order_of_sums(small):
    """What the trainer holds in float32 keeps float32's budgets; what it rounds, some per cent, and less as a whole."""
    drawn = whole.draw(small, whole.TOY, 5, 7)
    wide = ("norm", "positions", "embedding", "theta")
    trained = recorded_run(small, drawn, "mixed")
    for name, _, _, _, budget, along in mixed.compared(small, drawn, trained, "mixed", whole.UPSTREAM):
        if name in whole.LOSSES or (name.startswith("grad.") and any(part in name for part in wide)):
            assert budget < 1e-5, name                    # measured up to 5e-6
        else:
            assert budget < 0.1 and (along is None or along < 0.05), name  # measured up to 0.08 and 0.04


def test_budgets_do_not_follow_the_trainers_gradients(small):
    """Gradients three times as large are judged by the same budgets, entries and factors."""
    drawn = whole.draw(small, whole.TOY, 5, 7)
    trained = recorded_run(small, drawn, "mixed")
    other = replace(trained, grads={name: 3 * g for name, g in trained.grads.items()})
    one, two = ([x[4:] for x in mixed.compared(small, drawn, each, "mixed", whole.UPSTREAM)] for each in (trained, other))
    assert one == two and len(one) > 150


def test_fused_attention_loses_digits_and_nothing_else(rng):
    """With nothing rounded it is the reference's; with bfloat16 it is off by what that may cost."""
    qkv, dy, mask = rng.standard_normal((2, 5, 18)), rng.standard_normal((2, 5, 6)), np.arange(5) < np.array([[3], [5]])
    for real in (None, mask):
        want, back = ops.attention(qkv, 2, real)
        got, own = arithmetic.fused_attention(qkv, 2, real, lambda x: x)
        assert budgets.error(got, want, 1) < 1e-14 and budgets.error(own(dy), back(dy), 1) < 1e-13
        low, own = arithmetic.fused_attention(qkv, 2, real, lambda x: rounded.round_to(x, 7).astype(float))
        assert 1e-4 < budgets.error(low, want, budgets.scale(want)) < 0.02
        assert 1e-4 < budgets.error(own(dy), back(dy), budgets.scale(back(dy))) < 0.05


def test_a_batch_that_is_too_near_to_the_threshold_is_drawn_again(small, monkeypatch):
    """The alignment of bfloat16 embeddings may hit its threshold: what float32 keeps then says nothing."""
    seen = []

    def distance(setup, drawn, trained):
        seen.append(drawn)
        return 1e-9 if len(seen) < 3 else 1e-3

    monkeypatch.setattr(mixed, "threshold_distance", distance)
    drawn = whole.draw(small, whole.TOY, 5, 7)
    assert all(row.ok for row in whole.step_by_step(small, drawn, whole.trainer_run, "trainer"))
    assert len({each.images.tobytes() for each in seen}) == 3


def test_what_the_trainer_lacks_is_named(small):
    with pytest.raises(ValueError, match=r"vision\.norm\.out: expected the trainer's model to have a module of this name"):
        record.Pass({}).value("vision.norm.out")


# -------------------------------------------------------------------------------------------------------------- faults

SCALED = """import torch.nn.functional as F


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        return dy * ctx.factor, None


def scaled(x, factor, names=True):
    on = torch.is_autocast_enabled(x.device.type) and names
    return Scaled.apply(x, factor) if on else x
"""
GRADS = "return {name: to_numpy(grads.get(name, torch.zeros_like(p))) for name, p in model.state_dict().items()}"


def in_model(*changes):
    return "model.py", [("import torch.nn.functional as F\n", SCALED), *changes]


def at_the_end(factor, pick="True"):
    """Gradients changed after backward, where the parameters are float32 and the run was mixed."""
    changed = GRADS.replace("to_numpy(grads.get(name, torch.zeros_like(p)))",
                            f"to_numpy(grads.get(name, torch.zeros_like(p)) * ({factor} if MIXED[0] and ({pick}) else 1))")
    encode = "return self.encode_images(images) |"
    return "model.py", [("import torch.nn.functional as F\n", "import torch.nn.functional as F\n\nMIXED = [False]\n"),
                        (GRADS, changed), (encode, f"MIXED[0] = {ON}\n        {encode}")]


ON = 'torch.is_autocast_enabled("cpu")'
ATTEND = "o = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)"
EIGHT = "name in list(grads)[5:45:5]"
FAULTS = {
    "all gradients times 1.1": at_the_end(1.1),
    "all gradients times 1.05": at_the_end(1.05),
    "all gradients times 0.95": at_the_end(0.95),
    "eight tensors zero": at_the_end(0.0, EIGHT),
    "one tensor zero": at_the_end(0.0, "name == 'vision.blocks.1.mlp.up.bias'"),
    "one tensor 5 % off": at_the_end(1.05, "name == 'text.blocks.0.attn.key.weight'"),
    "one tensor's sign": at_the_end(-1.0, "name == 'text.blocks.0.norm1.bias'"),
    "theta's gradient 0.1 % off": at_the_end(1.001, "name == 'theta'"),
    "one layer's gradient 5 % off": in_model(("x = x + self.attn(self.norm1(x), mask)",
                                              "x = scaled(x, 1.05) + self.attn(self.norm1(x), mask)")),
    "an MLP's gradient 5 % off": in_model(("self.down(gelu(self.up(x), self.kind))",
                                            "scaled(self.down(gelu(self.up(x), self.kind)), 1.05)")),
    "attention's gradient 5 % off": in_model((ATTEND, ATTEND.replace("o = ", "o = scaled(") + ", 1.05)")),
    "the queries' gradient 5 % off": in_model((ATTEND, ATTEND.replace("(q, k", "(scaled(q, 1.05), k"))),
    "features detached": in_model(('"v_bar": self.image_head(pooled)', '"v_bar": self.image_head(scaled(pooled, 0.0))')),
    "scores of another temperature": in_model((ATTEND, ATTEND.replace("(q, k", f"(q * (1.03 if {ON} else 1), k"))),
    "padding attended to": in_model(("keys = mask[:, None, None, :] | ~real",
                                     "keys = mask[:, None, None, :] | ~real | (q.dtype == torch.bfloat16)")),
    "residual in bfloat16": in_model(("return x + self.mlp(self.norm2(x))",
                                      f"return (x.bfloat16() if {ON} else x) + self.mlp(self.norm2(x))")),
    "losses under autocast": ("loss.py", [("with torch.autocast(v.device.type, enabled=False):\n        theta = wide(theta)",
                                           "with torch.autocast(v.device.type, enabled=v.dtype == torch.bfloat16):\n"
                                           "        theta = wide(theta)")]),
    "the loss in 16 bits": ("loss.py", [("return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x", "return x")]),
    "the fine-grained loss 1 % up": ("loss.py", [("loss = loss + config.lambda_f * fine",
                                                  "loss = loss + config.lambda_f * fine * (1.01 if embeddings['v'].dtype == "
                                                  "torch.bfloat16 else 1)")]),
}


def first_failure(rows):
    return next((row for row in rows if not row.ok), None)


def seen_in(side, small):
    """Float64 and float32 must pass: the fault is in mixed precision alone."""
    rows = list(whole.gradients(replace(small, trainer=side)))
    assert all(row.ok for row in rows if row.dtype != "mixed"), first_failure(rows)
    return first_failure(rows)


@pytest.mark.parametrize("name", [
    pytest.param(x, marks=pytest.mark.slow if k % 2 else ()) for k, x in enumerate(FAULTS)])
def test_a_fault_of_mixed_precision_alone_is_seen(copies, small, name):  # noqa: F811
    file, changes = FAULTS[name]
    side = planted_trainer(copies, file, *changes)
    row = seen_in(side, small)
    assert row is not None and row.dtype == "mixed", name


def test_the_sound_copy_passes(copies, small):  # noqa: F811
    assert seen_in(planted_trainer(copies, *at_the_end(1.0)[:1], *at_the_end(1.0)[1]), small) is None
    assert seen_in(planted_trainer(copies, *in_model()[:1], *in_model()[1]), small) is None


RETURN = 'return {"loss": loss, "norm": norm}'
CLIP = "factor = torch.where(norm > limit, limit / norm, 1.0)"
SEND = "roots, grads = [out[name] for name in given], [given[name][i] for name in given]"
AGAIN = "return checkpoint(self.compute, x, mask, use_reentrant=False)"
OTHERS = {  # rung, file, right, wrong, the tensor that must be among those that are off
    "rate": (training.steps, "optim.py", 'settings["lr"] = lr', 'settings["lr"] = lr * (1.01 if autocast else 1)', "after 1."),
    "clip": (training.steps, "optim.py", CLIP, f"{CLIP} * (0.99 if grads else 1)", "grad."),
    "norm": (training.steps, "optim.py", RETURN, RETURN.replace("norm}", "norm * (1.01 if autocast else 1)}"), "norm"),
    "accumulation": (variants.accumulation, "optim.py", SEND,
                     SEND.replace("given[name][i]", "given[name][i] * (1.05 if autocast else 1)"), "losses, backward"),
    "checkpointing": (variants.checkpointing, "model.py", AGAIN,
                      AGAIN.replace("self.compute", f"lambda x, m: self.compute(x * (1.02 if {ON} else 1), m)"),
                      "vision.blocks.0"),
    "encoders": (whole.encoders, "model.py", "return self.norm(x)", f"return self.norm(x) * (1.001 if {ON} else 1)",
                 "image_features"),
}


@pytest.mark.parametrize(("rung", "file", "right", "wrong", "tensor"), [
    pytest.param(*row, id=name, marks=pytest.mark.slow if name in ("rate", "clip") else ()) for name, row in OTHERS.items()])
def test_a_fault_of_the_other_rungs_in_mixed_precision_is_seen(copies, small, rung, file, right, wrong, tensor):  # noqa: F811
    side = planted_trainer(copies, file, (right, wrong))
    rows = [row for row in rung(replace(small, trainer=side)) if row.dtype == "mixed"]
    assert any(not row.ok and row.name.startswith(tensor) for row in rows), [row for row in rows if not row.ok][:3]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_five_per_cent_on_a_frozen_gradient_in_16_bits_are_seen(copies, small, dtype):  # noqa: F811
    """The entries' budgets are 6 % in bfloat16; the factor sees it, in both losses."""
    widen = "return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x"
    only = f"x.dtype == torch.{dtype}"
    wrong = widen.replace("return", f"return x.float() * 1.05 - (x.float() * 0.05).detach() if {only} else")
    cases = ("fine_default", "global_default")
    for side, good in ((small.trainer, True), (planted_trainer(copies, "loss.py", (widen, wrong)), False)):
        rows = list(replay.replay(replace(small, trainer=side, wanted=lambda name: name in cases), "losses"))
        grads = [row for row in rows if ".grad." in row.name and row.side.startswith("trainer")]
        for function in ("fine_grained_loss", "global_loss"):
            found = [row.ok for row in grads if row.dtype == dtype and row.name.startswith(function)]
            assert all(found) == good and found, (function, side)
        assert all(row.ok for row in grads if row.dtype != dtype)


# --------------------------------------------------------------------------------------------------- what is noticed, proven

FACTOR = """

def dump_grads(model: SPARC) -> dict[str, np.ndarray]:
    return {name: (g * g.dtype.type(FACTORS.get(name, 1.0))).astype(g.dtype) for name, g in dumped_grads(model).items()}


FACTORS: dict = {}
"""


@pytest.fixture(scope="module")
def with_factors(tmp_path_factory):
    """A copy of the trainer whose gradients are multiplied by what FACTORS says."""
    import sys

    folder = tmp_path_factory.mktemp("planted_factors")
    sys.path.insert(0, str(folder))
    side = planted_trainer(folder, "model.py", ("def dump_grads(model: SPARC)", "def dumped_grads(model: SPARC)"),
                           ("\n\ndef to_numpy(x: Tensor)", FACTOR + "\n\ndef to_numpy(x: Tensor)"))
    yield side
    sys.path.remove(str(folder))


@pytest.mark.parametrize("dtype", ["float32", "mixed", pytest.param("float64", marks=pytest.mark.slow)])
def test_a_factor_is_noticed_from_the_printed_size_on_and_not_at_a_tenth_of_it(with_factors, small, monkeypatch, dtype):
    """The median and the worst gradient of each dtype, up and down."""
    on = replace(small, trainer=with_factors)
    factors = with_factors.model.FACTORS
    monkeypatch.setattr(whole, "DTYPES", (dtype,))
    found = {row.name: row for row in whole.gradients(on) if row.name.startswith("grad.")}
    assert all(row.ok and 0 < row.notices < math.inf for row in found.values())
    ordered = sorted(found.values(), key=lambda row: row.notices)
    for row in (ordered[len(ordered) // 2], ordered[-1]):
        name = row.name.removeprefix("grad.")
        for times, noticed in ((1.02, True), (-1.02, True), (0.1, False), (-0.1, False)):
            factors[name] = 1 + times * row.notices
            got = [each for each in whole.gradients(on) if each.name == row.name]
            factors.clear()
            assert [each.ok for each in got] == [not noticed], (row.name, row.notices, times)


@pytest.mark.parametrize(("dtype", "aim"), [
    ("mixed", 0.05), *(pytest.param(*x, marks=pytest.mark.slow) for x in (("float64", 1e-12), ("float32", 1e-4)))])
def test_every_gradient_is_noticed_at_the_aim(small, dtype, aim):
    """At toy sizes; the ladder prints the preset's.  Measured: 4e-14, 3e-5, 3 %."""
    for rung in (whole.encoders, whole.gradients, variants.checkpointing, variants.accumulation):
        notices = [row.notices for row in rung(small) if row.dtype == dtype and row.notices is not None]
        assert len(notices) >= 50 and max(notices) <= aim, (rung.__name__, max(notices))


def test_notices_by_hand():
    want = np.array([1.0, -2.0, 0.5])
    assert judge.notices(want, want, 2.0, 0.05) == pytest.approx(0.05)
    assert judge.notices(want * 1.01, want, 2.0, 0.05) == pytest.approx(0.06 / 1.01)   # the way back is the longer one
    assert judge.notices(want, want, 2.0, 0.05, along=0.001) == pytest.approx(0.001)
    assert judge.notices(want, want, 2.0, 0.5) == math.inf                             # a budget that proves nothing
    assert judge.notices(want, want, 2.0, 0.5, along=0.2) == math.inf
    assert math.isnan(judge.notices(np.zeros(3), np.zeros(3), 1.0, 0.05))


def test_a_row_is_the_comparison_nearest_to_its_budget():
    want = np.array([1.0, -2.0, 0.5])
    row = judge.judge("grad.x", "mixed", "trainer", want * 1.01, want, 2.0, 0.05, 0.02)
    assert row.ok and row.error == pytest.approx(0.01) and row.budget == 0.02
    assert "as a whole off by the factor 1 +1.0e-02" in row.where
    row = judge.judge("grad.x", "mixed", "trainer", want + np.array([0, 0, 0.08]), want, 2.0, 0.05, 0.5)
    assert row.ok and row.budget == 0.05 and "entry (2)" in row.where
    row = judge.judge("grad.x", "mixed", "trainer", want, want, 2.0, 0.3, 0.02)
    assert row.budget == 0.02 and row.proves and "proves nothing" in row.note
    row = judge.judge("grad.x", "mixed", "trainer", want, want, 2.0, 0.3, 0.4)
    assert row.ok and not row.proves and row.notices == math.inf
    assert not judge.judge("grad.x", "mixed", "trainer", want + 1, want, 2.0, 0.3, 0.02).ok
    assert not judge.judge("grad.x", "mixed", "trainer", want * np.nan, want, 2.0, 0.05, 0.02).ok
    assert not judge.judge("x", "float64", "trainer", want * np.nan, want, 2.0, math.inf).ok


def test_the_factor_sees_below_what_entries_may_be_off(rng):
    """10,000 entries rounded to bfloat16: an entry is off by up to 0.4 %, the whole by some 1e-5."""
    want = rng.standard_normal(10_000)
    got = rounded.round_to(want, 7).astype(float)
    assert 1e-3 < budgets.error(got, want, budgets.scale(want)) < 5e-3
    assert budgets.factor(got, want) < 4 * budgets.factor_noise(got, want) < 2e-4
    allowed = budgets.factor_budgets({"grad.x": want}, [{"grad.x": got}], 2.0**-9)["grad.x"]
    assert budgets.factor(got, want) < allowed < 1e-3 < budgets.factor(got * 1.001, want) + allowed
    assert budgets.factor(np.zeros(3), np.zeros(3)) == 0 and budgets.factor(want * np.nan, want) == math.inf
    assert budgets.factor(1.5 * want, want) == pytest.approx(0.5) and budgets.factor(want, -want) == pytest.approx(2)


def test_recording_changes_nothing(small):
    drawn = whole.draw(small, whole.TOY, 5, 7)
    for run in (whole.trainer_run, partial(variants.by_backward, accumulate=2)):
        plain, kept = run(small, drawn, "mixed"), run(small, drawn, "mixed", record=[])
        assert all(np.array_equal(plain[name], kept[name]) for name in plain)
    assert not any(module._forward_hooks for module in whole.trainer_model(small, drawn, "mixed").modules())
    assert torch.is_grad_enabled()
