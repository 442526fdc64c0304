"""The one measure: errors, scales, budgets, and how they are measured."""

import math

import numpy as np
import pytest
import torch

from parity.vectors import budgets
from parity.vectors.budgets import EPS, FRACTION, SLACK


def test_error_is_the_largest_difference_in_units_of_the_scale():
    assert budgets.error([1.0, 2.5], [1.0, 2.0], 2.0) == 0.25
    assert budgets.error(np.zeros((0, 3)), np.zeros((0, 3)), 1.0) == 0
    assert budgets.error(torch.tensor([1.0, 2.5], dtype=torch.bfloat16), [1.0, 2.0], 2.0) == 0.25
    assert budgets.error(3, 3, 1.0) == 0


@pytest.mark.parametrize("got", [[math.nan, 1.0], [1.0, math.inf], [1.0, -math.inf]])
def test_what_is_not_finite_must_be_so_on_both_sides(got):
    assert budgets.error(got, [1.0, 1.0], 1.0) == math.inf
    assert budgets.error([1.0, 1.0], got, 1.0) == math.inf
    assert budgets.error(got, got, 1.0) == 0


def test_infinity_has_a_sign():
    assert budgets.error([math.inf], [-math.inf], 1.0) == math.inf


def test_another_shape_is_an_error_of_its_own():
    with pytest.raises(ValueError, match=r"expected shape \(2, 1\), got \(2,\)"):
        budgets.error(np.zeros(2), np.zeros((2, 1)), 1.0)


def test_scale():
    assert budgets.scale([1.0, -3.0]) == 3
    assert budgets.scale([1.0, math.nan, math.inf]) == 1, "what is not finite has no size"
    assert budgets.scale([0.0]) == 1, "nothing to measure by"
    assert budgets.scale([0.0], 5.0) == 5, "all of it cancels: the family decides"
    assert budgets.scale([FRACTION * 4], 5.0) == 5
    assert budgets.scale([FRACTION * 6], 5.0) == FRACTION * 6
    assert budgets.scale([0.0], [np.ones(2), np.full(3, -7.0)]) == 7


def test_families():
    want = {"grad.a": [4.0], "grad.b": [0.0], "out.m.x": [1e-9], "out.m.y": [0.0], "mid.z": [0.0], "out.loss": 2.0}
    scales = budgets.all_scales(want)
    assert scales == {"grad.a": 4, "grad.b": 4, "out.m.x": 1e-9, "out.m.y": 1e-9, "mid.z": 1, "out.loss": 2}
    assert budgets.all_scales({"mid.logits": [100.0], "mid.loss_text": [0.0], "out.loss": 0.0, "mid.weights": [0.0]}) == {
        "mid.logits": 100, "mid.loss_text": 100, "out.loss": 100, "mid.weights": 1,
    }  # fmt: skip


def test_a_budget_is_never_below_a_unit_of_rounding():
    for dtype, eps in EPS.items():
        assert budgets.from_measured(0.0, dtype) == SLACK * eps
        assert budgets.from_measured(10 * eps, dtype) == SLACK * 10 * eps
    assert budgets.float64_from(10 * EPS["float32"]) == SLACK * 10 * EPS["float64"]


def test_units_of_rounding_are_the_dtypes_own():
    for dtype, eps in EPS.items():
        assert torch.finfo(getattr(torch, dtype)).eps == eps


def test_measure():
    """A sum that loses digits in float32, and an exact one; the worst run counts."""
    x = np.array([1.0, 1e-4, 3e-5])

    def run(dtype):
        if dtype == "float64":
            return {"out.sum": np.sum(x), "grad.x": np.ones(3)}
        low = torch.tensor(x).to(getattr(torch, dtype))
        return [{"out.sum": low.sum() * k, "grad.x": torch.ones(3, dtype=low.dtype)} for k in (1, 1.001)]

    found = budgets.measure(run, ("float32", "bfloat16"))
    assert found["grad.x"].error == {"float32": 0, "bfloat16": 0}
    assert found["grad.x"].budget == {n: SLACK * EPS[n] for n in ("float32", "float64", "bfloat16")}
    lost = found["out.sum"].error["float32"]
    assert 0.9e-3 < lost < 1.1e-3, "the second run is a thousandth off"
    assert found["out.sum"].budget["float32"] == SLACK * lost
    assert found["out.sum"].budget["float64"] == pytest.approx(SLACK * lost * EPS["float64"] / EPS["float32"])


def test_the_floor_is_that_of_the_dtype_in_which_an_answer_is_returned():
    """A loss that is computed in float32 for float16 inputs has a float32 budget."""
    found = budgets.measure(lambda dtype: {"loss": np.float64(2) if dtype == "float64" else np.float32(2)}, ("float16",))
    assert found["loss"].budget["float16"] == SLACK * EPS["float32"]
