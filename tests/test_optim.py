"""AdamW against torch's, the schedule, clipping, and what is left undecayed."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from witness import close

from sparc_ref import PRESETS, optim
from sparc_ref.model import parameter_shapes

SHAPES = {"g_v.weight": (3, 4), "g_v.bias": (3,), "text.embedding.weight": (5, 2), "vision.norm.weight": (4,), "theta": ()}


def test_ten_steps_equal_torch(rng):
    params = {name: np.asarray(rng.standard_normal(shape)) for name, shape in SHAPES.items()}
    leaves = {name: torch.tensor(p, requires_grad=True) for name, p in params.items()}
    groups = [
        {"params": [leaves["g_v.weight"]], "weight_decay": 0.3},
        {"params": [leaves[n] for n in SHAPES if n != "g_v.weight"], "weight_decay": 0.0},
    ]
    theirs = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-5)
    state = optim.adamw_init(params)
    for step in range(10):
        lr = 0.1 / (1 + step)
        grads = {name: np.asarray(rng.standard_normal(shape)) for name, shape in SHAPES.items()}
        for group in theirs.param_groups:
            group["lr"] = lr
        for name, leaf in leaves.items():
            leaf.grad = torch.tensor(grads[name])
        theirs.step()
        params, state = optim.adamw_step(params, grads, state, lr, betas=(0.8, 0.95), eps=1e-5, weight_decay=0.3)
        for name, leaf in leaves.items():
            close(params[name], leaf.detach().numpy(), name, 1e-13)
    assert state["step"] == 10


def test_a_step_leaves_its_inputs_alone(rng):
    params = {name: np.asarray(rng.standard_normal(shape)) for name, shape in SHAPES.items()}
    for p in params.values():
        p.flags.writeable = False
    state = optim.adamw_init(params)
    _, after = optim.adamw_step(params, params, state, 0.1)
    assert state["step"] == 0 and after["step"] == 1
    assert all(not m.any() for m in state["m"].values())


def test_float32_stays_float32_and_arrays_stay_arrays(array):
    params = {name: array(np.ones(shape, np.float32)) for name, shape in SHAPES.items()}
    new, state = optim.adamw_step(params, params, optim.adamw_init(params), 0.1)
    new, state = optim.adamw_step(new, params, state, 0.1)
    for x in (*new.values(), *state["m"].values(), *state["v"].values()):
        assert str(x.dtype).endswith("float32")
        assert hasattr(x, "shape")


def test_only_matrices_decay():
    names = parameter_shapes(replace(PRESETS["tiny"], temperature="separate"))
    spared = [n for n in names if not optim.decays(n)]
    assert all(n.endswith("bias") or any(w in n for w in ("norm", "positions", "embedding", "theta")) for n in spared)
    assert all(len(names[n]) == 2 for n in names if optim.decays(n))
    assert {"vision.patch.weight", "h_v.weight", "g_v.weight", "g_t.weight", "text.blocks.0.attn.key.weight"} <= {
        n for n in names if optim.decays(n)
    }


def test_names_must_match():
    with pytest.raises(ValueError, match="grads: expected the names of params"):
        optim.adamw_step({"a": np.ones(1)}, {"b": np.ones(1)}, optim.adamw_init({"a": np.ones(1)}), 0.1)


def test_clipping(rng):
    grads = {name: np.asarray(rng.standard_normal(shape)) for name, shape in SHAPES.items()}
    norm = math.sqrt(sum(float(np.sum(g * g)) for g in grads.values()))
    clipped, before = optim.clip_by_global_norm(grads, norm / 2)
    assert before == pytest.approx(norm)
    for name in grads:
        close(clipped[name], grads[name] / 2, name, 1e-14)
    same, _ = optim.clip_by_global_norm(grads, norm * 1.01)
    assert all(same[name] is grads[name] for name in grads)


def test_schedule():
    lr = [optim.warmup_cosine(step, peak=2.0, warmup=4, steps=24) for step in range(25)]
    assert lr[:4] == [0.5, 1.0, 1.5, 2.0]
    assert lr[4] == 2.0 and lr[14] == pytest.approx(1.0) and lr[24] == pytest.approx(0, abs=1e-12)
    assert lr[4:] == sorted(lr[4:], reverse=True)
    assert optim.warmup_cosine(99, peak=2.0, warmup=4, steps=24, final=0.1) == pytest.approx(0.1)


def test_theta_is_clamped():
    params = {"theta": np.asarray(9.0), "theta_fine": np.asarray(-1.0), "g_v.bias": np.asarray([9.0])}
    clamped = optim.clamp_theta(params)
    assert clamped["theta"] == pytest.approx(math.log(100)) and clamped["theta_fine"] == 0
    assert clamped["g_v.bias"] is params["g_v.bias"]


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e19, 1e30])
def test_clipping_where_squares_leave_the_range(rng, scale):
    """The norm was inf or 0, and what came back 0 or what was given."""
    grads = {name: np.asarray(rng.standard_normal(shape) * scale, np.float32) for name, shape in SHAPES.items()}
    wide = {name: g.astype(np.float64) for name, g in grads.items()}
    with np.errstate(over="ignore", under="ignore"):
        clipped, norm = optim.clip_by_global_norm(grads, scale / 10)
    expected, exact = optim.clip_by_global_norm(wide, scale / 10)
    assert norm == pytest.approx(exact, rel=1e-5)
    for name in grads:
        close(clipped[name] / scale, expected[name] / scale, name, 1e-5)


def test_a_gradient_whose_square_leaves_the_range():
    """Its second moment is infinite, so that the parameter would stay where it is."""
    params = {"g_v.bias": np.ones(3, np.float32)}
    with np.errstate(over="ignore"), pytest.raises(ArithmeticError, match=r"gradient of g_v\.bias: its square left"):
        optim.adamw_step(params, {"g_v.bias": np.full(3, 1e20, np.float32)}, optim.adamw_init(params), 0.1)
    many = {"g_v.bias": np.full(300, 1e18, np.float32)}                 # the squares fit, their sum does not
    moved = optim.adamw_step(many, many, optim.adamw_init(many), 1e17)[0]
    assert (moved["g_v.bias"] < many["g_v.bias"]).all()
