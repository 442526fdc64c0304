"""Answers compared with the frozen vectors: what passes, what does not, and that planted faults are seen where they are."""

import math

import numpy as np
import pytest
import torch
from planting import first_wrong, planted

from parity import vectors
from parity.vectors import budgets, runs

CASES = vectors.load()


def own_answer(case):
    return {name: case.tensors[name] for name in case.budget}


def test_every_case_accepts_its_own_answer():
    for case in CASES.values():
        differences = vectors.compare(case, own_answer(case), "float64")
        assert all(d.ok and d.error == 0 and d.case == case.id for d in differences)


def test_differences_come_in_forward_order():
    names = [d.name for d in vectors.compare(CASES["fine_default"], own_answer(CASES["fine_default"]), "float64")]
    stages = ["similarity", "minmax", "sparse", "weights", "grouped", "logits_vt", "logits_tv", "loss_vt", "loss_tv"]
    assert names == [*(f"mid.{stage}" for stage in stages), "out.loss", "grad.v", "grad.t", "grad.theta"]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_the_reference_keeps_its_budgets(kind, dtype):
    failed = []
    for case in CASES.values():
        failed += [f"{case.id} {d}" for d in vectors.compare(case, runs.replay(case, dtype, kind), dtype) if not d.ok]
    assert not failed


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_reference_keeps_its_budgets_in_half_precision(dtype):
    failed, tried = [], 0
    for case in CASES.values():
        if dtype in case.dtypes and case.level != "model":
            got = runs.replay(case, dtype, "torch")
            failed += [f"{case.id} {d}" for d in vectors.compare(case, got, dtype) if not d.ok]
            tried += 1
    assert not failed and tried > 140


def test_a_budget_of_a_tenth_of_the_scale_proves_nothing():
    """It is said of every such tensor, and an answer of which nothing is proven does not pass."""
    seen = {True: 0, False: 0}
    for case in CASES.values():
        for dtype in case.dtypes:
            found = vectors.compare(case, own_answer(case), dtype)
            for d in found:
                seen[d.proves] += 1
                assert d.proves == (case.budget[d.name][dtype] < 0.1) == ("proves nothing" not in str(d))
                assert d.proves or dtype in ("float16", "bfloat16")
            assert vectors.passes(found)                  # every case has an output that proves something
            blind = [d for d in found if not d.proves]
            assert not vectors.passes(blind)
    assert seen[False] > 1000 and seen[True] > 8000
    assert "<- beyond" in str(vectors.Difference("grad.x", 0.3, 0.2, False)) and not vectors.passes([])


def test_budgets_are_tight():
    """A thousandth of a per cent in float64, one per cent in float32: seen in every case that is not exactly 0."""
    for case in CASES.values():
        for dtype, factor in (("float64", 1 + 1e-5), ("float32", 1.01)):
            got = {n: x * factor if np.any(x) else x for n, x in own_answer(case).items()}
            wrong = {d.name for d in vectors.compare(case, got, dtype) if not d.ok}
            for name, x in own_answer(case).items():
                if np.isfinite(x).all() and budgets.largest(x) == case.scale[name]:
                    assert name in wrong, (case.id, name, dtype)


def test_half_precision_inputs_ask_for_float32_inside():
    """The loss of a float16 case has a float32 budget: computing it in half precision does not pass."""
    for name in ("fine_float16", "fine_bfloat16", "global_float16", "global_bfloat16"):
        case = CASES[name]
        assert case.budget["out.loss"][case.input_dtype] < 1e-4
        grad = "grad.v" if "fine" in name else "grad.v_bar"
        assert case.budget[grad][case.input_dtype] > 1e-3, "gradients come back narrowed"


def test_stages_are_optional_and_outputs_are_not():
    case = CASES["global_default"]
    only = {n: x for n, x in own_answer(case).items() if not n.startswith("mid.")}
    assert vectors.passes(vectors.compare(case, only, "float64"))
    del only["grad.theta"]
    differences = vectors.compare(case, only, "float64")
    assert not vectors.passes(differences)
    assert [(d.name, d.error) for d in differences if not d.ok] == [("grad.theta", math.inf)]


def test_a_stage_that_differs_does_not_fail_an_answer():
    case = CASES["fine_default"]
    differences = vectors.compare(case, own_answer(case) | {"mid.weights": case.tensors["mid.weights"] * 3}, "float64")
    assert [d.name for d in differences if not d.ok] == ["mid.weights"] and vectors.passes(differences)


def test_padding_is_not_compared_in_stages_but_in_gradients():
    case = CASES["fine_default"]
    out = ~case.tensors["in.mask"]
    junk = {n: x.copy() for n, x in own_answer(case).items()}
    junk["mid.similarity"][out] = 7
    junk["mid.logits_vt"].swapaxes(1, 2)[out] = np.nan
    assert all(d.ok for d in vectors.compare(case, junk, "float64"))
    junk["grad.t"][out] = 1e-9
    assert [d.name for d in vectors.compare(case, junk, "float64") if not d.ok] == ["grad.t"]


def test_an_accepted_alternative_passes_and_is_named():
    case, other = CASES["fine_ties_minimum"], CASES["fine_ties_minimum_first"]
    differences = vectors.compare(case, own_answer(other), "float64")
    assert vectors.passes(differences) and {d.case for d in differences} == {other.id}
    mixed = own_answer(other) | {"grad.t": case.tensors["grad.t"]}
    differences = vectors.compare(case, mixed, "float64")
    assert not vectors.passes(differences) and {d.case for d in differences} == {case.id}, "half of each is neither"
    assert not vectors.passes(vectors.compare(other, own_answer(case), "float64")), "the option's own case is strict"


def test_nan_is_expected_where_it_is_expected():
    case = CASES["fine_flat_nan"]
    assert np.isnan(case.tensors["out.loss"])
    assert vectors.passes(vectors.compare(case, own_answer(case), "float32"))
    assert not vectors.passes(vectors.compare(case, own_answer(case) | {"out.loss": 1.0}, "float32"))
    case = CASES["fine_flat_uniform"]
    assert not vectors.passes(vectors.compare(case, own_answer(case) | {"out.loss": math.nan}, "float32"))


@pytest.mark.parametrize(
    ("got", "dtype", "message"),
    [
        ({"out.los": 1.0}, "float64", "global_default: no tensor out.los; expected names among mid.logits"),
        ({"in.v_bar": 1.0}, "float64", "no tensor in.v_bar"),
        ({"out.loss": np.ones(1)}, "float64", r"out.loss: expected shape \(\), got \(1,\)"),
        ({"grad.v_bar": np.ones((6, 4))}, "float64", r"grad.v_bar: expected shape \(4, 6\), got \(6, 4\)"),
        ({}, "float8", "global_default: has no budgets in float8, only in float64, float32"),
    ],
)
def test_answers_that_cannot_be_compared_are_named(got, dtype, message):
    with pytest.raises(ValueError, match=message):
        vectors.compare(CASES["global_default"], got, dtype)


def test_answers_may_be_any_arrays():
    case = CASES["global_default"]
    answer = {n: torch.tensor(x, requires_grad=True) for n, x in own_answer(case).items()}
    assert vectors.passes(vectors.compare(case, answer, "float64"))
    answer = {n: torch.tensor(x).to(torch.bfloat16) for n, x in own_answer(case).items() if n != "out.loss"}
    assert vectors.compare(case, answer | {"out.loss": float(case.tensors["out.loss"])}, "bfloat16")


def test_one_level_alone():
    assert {case.level for case in vectors.load(level="steps").values()} == {"steps"}
    with pytest.raises(ValueError, match="no case of level 'all'"):
        vectors.load(level="all")


# --- faults --------------------------------------------------------------------------------------------------------------

FAULTS = [  # module, right, wrong, a case that sees it, the tensor at which it shows first
    ("alignment", "keep = x >= sigma", "keep = x > sigma", "fine_sigma_hit", "mid.sparse"),
    ("alignment", "(s - lo) / width)", "(s - lo) / (width + 1e-10))", "fine_sigma_hit", "mid.minmax"),
    ("alignment", "undefined = flat_rows | none_left", "undefined = none_left", "fine_flat_zero", "mid.weights"),
    ("alignment", "sigma = 1 / patches if sigma is None else sigma", "sigma = 0.3", "fine_default", "mid.sparse"),
    ("alignment", "a = x / total", "a = x / total * 2", "align_default", "mid.weights"),
    ("alignment", "share(dlo, s == lo, ties) +", "0 * dlo +", "fine_default", "grad.v"),
    ("alignment", "return d * at / xp.sum(at, axis=-1, keepdims=True)", "return d * at", "fine_ties_minimum", "grad.v"),
    ("alignment", "T(ds) @ key_t) + T(a) @ dc", "T(ds) @ key_t) * 0 + T(a) @ dc", "fine_default", "grad.v"),
    ("losses", "columns = mask[:, None, :]", "columns = xp.ones_like(mask[:, None, :])", "fine_default", "mid.loss_vt"),
    ("losses", "diagonal_cross_entropy(T(logits), columns)", "diagonal_cross_entropy(logits, columns)",
     "fine_default", "mid.loss_tv"),
    ("losses", "length = xp.sum(real, axis=1)[:, None]", "length = xp.ones_like(real) * real.shape[1]",
     "fine_default", "out.loss"),
    ("losses", "length = xp.sum(real, axis=1)[:, None]", "length = 1 + xp.sum(real, axis=1)[:, None]",
     "fine_no_padding", "out.loss"),
    ("losses", "dtheta = xp.sum(dlogits * xp.where", "dtheta = 2 * xp.sum(dlogits * xp.where", "fine_default", "grad.theta"),
    ("losses", "t_hat, back_t = ops.l2_normalize(t_bar)", "t_hat, back_t = t_bar, lambda d: d", "global_default", "mid.logits"),
    ("losses", "logits = xp.exp(theta) * cosine", "logits = xp.exp(xp.clip(theta, 0, 4.6)) * cosine",
     "global_theta_beyond", "mid.logits"),
    ("ops", "    y /= length\n", "    y /= length + 1e-8 / top\n", "l2_normalize_small", "out.y"),
    ("ops", "scale = (C // H) ** -0.5", "scale = C**-0.5", "attention_2", "out.y"),
    ("ops", "softmax(q @ T(k), None if mask is None else mask[:, None, None, :])",
     "softmax(q @ T(k))", "attention_padding", "out.y"),
    ("ops", "cubic = 0.044715 * k", "cubic = 0.0447 * k", "gelu_tanh", "out.y"),
    ("encoders", "r = np.zeros((new, old))", "r = np.zeros((new, old)); at = at * (old - 1) / old",
     "resize_bicubic_larger", "out.y"),
    ("encoders", "def _cubic(d, a=-0.75)", "def _cubic(d, a=-0.5)", "vision_resize_bicubic", "out.y"),
    ("encoders", 'for part in ("query", "key"', 'for part in ("key", "query"', "vision_default", "out.y"),
    ("model", "dtheta + dtheta_fine", "dtheta", "model_default", "grad.theta"),
    ("model", "df_v += back_pool(dpooled)", "pass", "model_default", "grad.vision.patch.weight"),
    ("model", 'params.get("theta_fine", theta)', "theta", "model_separate_temperatures", "mid.logits_vt"),
    ("optim", "root = math.sqrt(1 - beta2**step)", "root = 1.0", "adamw_first_step", "out.params.vision.patch.weight"),
    ("optim", 'return name.endswith(".weight") and', "return True or", "adamw_ten_steps", "out.params.vision.positions"),
    ("optim", "change += eps * root", "change += eps", "adamw_eps", "out.params.vision.patch.weight"),
    ("optim", "lowest, highest = THETA_RANGE", "lowest, highest = 0.0, 9.0", "adamw_clamp", "out.params.theta"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "right", "wrong", "id", "tensor"), FAULTS, ids=lambda x: str(x).replace("\n", " "))
def test_a_planted_fault_is_seen_where_it_is(module, right, wrong, id, tensor):
    case = CASES[id]
    assert first_wrong(runs, case) is None
    with planted((module, right, wrong)) as faulty:
        found = first_wrong(faulty, case)
    assert found is not None and getattr(found, "name", None) == tensor, str(found)
    assert first_wrong(runs, case) is None, "the sound one is untouched"


@pytest.mark.parametrize(("module", "right", "wrong", "id", "tensor"), FAULTS, ids=lambda x: str(x).replace("\n", " "))
def test_a_planted_fault_is_seen_in_float32_too(module, right, wrong, id, tensor):
    id = "fine_range_small" if "1e-10" in wrong else id       # too small for float32 elsewhere
    with planted((module, right, wrong)) as faulty:
        found = first_wrong(faulty, CASES[id], "float32")
    assert hasattr(found, "name"), f"seen as a wrong number, not because the fault breaks the code: {found}"


@pytest.mark.parametrize("fault", [("alignment", "this is nowhere", ""), ("nowhere", "c = a @ v", "c = a")])
def test_what_cannot_be_planted_says_so(fault):
    with pytest.raises(AssertionError, match="move the fault to where it went"), planted(fault):
        pass


def test_what_cancels_does_not_fail_a_loss():
    """A mean in place of eq. 4's sum: seen as a stage, harmless in loss and gradient."""
    row = "(da - xp.sum(da * a, axis=-1, keepdims=True)) / total"
    twice = "2 * (da - xp.sum(da * a, axis=-1, keepdims=True) / 2) / total"
    seen = 0
    with planted(("alignment", "a = x / total", "a = x / total * 2"), ("alignment", row, twice)) as faulty:
        for case in CASES.values():
            if case.function == "fine_grained_loss" and case.options["threshold_on"] == "minmax" and "flat" not in case.flags:
                differences = vectors.compare(case, faulty.replay(case), "float64")
                assert vectors.passes(differences), case.id
                seen += not all(d.ok for d in differences)
    assert seen > 30
