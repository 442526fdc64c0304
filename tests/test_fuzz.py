"""Shapes, dtypes and hostile values at random: a clear error or a finite result, never a silent NaN."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparc_ref import fine_grained_loss, global_loss
from sparc_ref.alignment import CHOICES

HOSTILE = [0.0, -0.0, 1.0, -1.0, 1e-45, 1e-38, -1e-20, 1e20, -3e38, 65504.0, np.inf, -np.inf, np.nan]
FILLS = ["normal", "zeros", "constant", "tiny", "huge", "hostile"]


def fill(rng, kind, shape, dtype):
    with np.errstate(over="ignore"):
        x = {
            "normal": lambda: rng.standard_normal(shape),
            "zeros": lambda: np.zeros(shape),
            "constant": lambda: np.full(shape, 0.3),
            "tiny": lambda: rng.standard_normal(shape) * 1e-39,
            "huge": lambda: rng.standard_normal(shape) * 1e18,
            "hostile": lambda: np.where(rng.random(shape) < 0.1, rng.choice(HOSTILE, shape), rng.standard_normal(shape)),
        }[kind]()
        return x.astype(dtype)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(*(st.integers(1, 6) for _ in range(4))),
    kinds=st.tuples(st.sampled_from(FILLS), st.sampled_from(FILLS)),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    theta=st.sampled_from([-5.0, 0.0, 2.66, 4.6, 50.0]),
    options=st.fixed_dictionaries(
        {name: st.sampled_from([v for v in values if v != "nan"]) for name, values in CHOICES.items()}
        | {"sigma": st.sampled_from([None, 0.0, 0.5, 1.0]), "reduction": st.sampled_from(["sample", "token"])}
    ),
)
def test_fine_grained_loss(seed, sizes, kinds, dtype, theta, options):
    rng = np.random.default_rng(seed)
    b, l, p, d = sizes
    v, t = fill(rng, kinds[0], (b, p, d), dtype), fill(rng, kinds[1], (b, l, d), dtype)
    mask = rng.random((b, l)) < 0.7
    theta = np.asarray(theta, dtype)
    try:
        loss, _, back = fine_grained_loss(v, t, mask, theta, **options)
        grads = back(0.5)
    except ArithmeticError as error:
        assert "NaN or infinite" in str(error) or "left the range" in str(error)
        return
    assert np.isfinite(loss) and loss >= -1e-6
    assert all(g.dtype == np.dtype(dtype) for g in grads)
    assert all(np.all(np.isfinite(g)) for g in grads)
    assert not np.any(grads[1][~mask])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    kinds=st.tuples(st.sampled_from(FILLS), st.sampled_from(FILLS)),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_global_loss(seed, sizes, kinds, dtype):
    rng = np.random.default_rng(seed)
    v_bar, t_bar = (fill(rng, kind, sizes, dtype) for kind in kinds)
    try:
        loss, _, back = global_loss(v_bar, t_bar, np.asarray(2.66, dtype))
        grads = back(0.5)
    except ArithmeticError as error:
        assert "NaN or infinite" in str(error) or "left the range" in str(error)
        return
    assert np.isfinite(loss)
    assert all(np.all(np.isfinite(g)) for g in grads)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(shapes=st.tuples(*(st.lists(st.integers(0, 3), max_size=4) for _ in range(3))))
def test_any_shapes_work_or_are_refused_by_name(shapes):
    v, t, mask = np.ones(shapes[0]), np.ones(shapes[1]), np.ones(shapes[2], bool)
    try:
        fine_grained_loss(v, t, mask, np.asarray(1.0))
    except ValueError as error:
        assert str(error).split(":")[0] in ("v", "t", "mask")
