"""The checks must be able to fail: a fault planted in each gradient, one at a time, and seen by the witnesses.

A fault is a change of source text.  The module is compiled anew with it, so nothing can be patched halfway.
"""

import ast
import re
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from witness import agree, close

from parity import oracle
from sparc_ref import alignment, encoders, losses, model, ops

X = np.random.default_rng(5)


def planted(module, right, wrong):
    """The module with one piece of its text replaced."""
    with open(module.__file__) as file:
        text = file.read()
    text = re.sub(r" +#.*", "", text)  # comments do not count
    assert text.count(right) >= 1, f"{right!r} is not in {module.__name__} any more: move the fault to where it went"
    faulty = types.ModuleType(module.__name__)
    faulty.__file__ = module.__file__
    exec(compile(text.replace(right, wrong, 1), module.__file__, "exec"), faulty.__dict__)
    return faulty


def d(*shape):
    return X.standard_normal(shape)


MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)

OPS = [
    ("linear", "xp.reshape(dy @ weight, shape)", "xp.reshape(dy @ weight * 1.001, shape)",
     {"x": d(2, 3, 4), "weight": d(4, 4)}, {}),
    ("linear", "dweight = dy.T @ rows", "dweight = rows.T @ dy", {"x": d(2, 3, 4), "weight": d(4, 4)}, {}),
    ("linear", "(dx, dweight, xp.ones_like(dy[:, 0]) @ dy)", "(dx, dweight, dy[0])",
     {"x": d(2, 3, 4), "weight": d(5, 4), "bias": d(5)}, {}),
    ("standardize", "- xp.mean(dx_hat, axis=-1, keepdims=True)", "", {"x": d(3, 4, 6)}, {}),
    ("standardize", " - x_hat * along", "", {"x": d(3, 4, 6)}, {}),
    ("standardize",  "along) * rstd", "along)", {"x": d(3, 4, 6)}, {}),
    ("layer_norm", "back_x_hat(dy * gain)", "back_x_hat(dy)", {"x": d(3, 4, 6), "gain": d(6), "shift": d(6)}, {}),
    ("layer_norm", "xp.sum(dy * x_hat, axis=axes)", "xp.sum(dy * x, axis=axes)",
     {"x": d(3, 4, 6), "gain": d(6), "shift": d(6)}, {}),
    ("gelu", "x2 *= 6 * cubic", "x2 *= 2 * cubic", {"x": d(6, 3)}, {"kind": "tanh"}),
    ("gelu", "phi + x * xp.exp", "phi - x * xp.exp", {"x": d(6, 3)}, {"kind": "erf"}),
    ("softmax", "dz = da - xp.vecdot(da, a)[..., None]", "dz = da + 0", {"z": d(3, 4, 5)}, {}),
    ("log_softmax", "dlog_p - p * xp.sum(dlog_p, axis=-1, keepdims=True)", "dlog_p - p", {"z": d(3, 4, 5)}, {}),
    ("log_softmax", "dlog_p = xp.where(mask, dlog_p, 0.0)", "pass", {"z": d(3, 4, 5)}, {"mask": MASK[:, None, :]}),
    ("l2_normalize", "(dy - y * xp.vecdot(y, dy)[..., None])", "dy", {"x": d(3, 4)}, {}),
    ("l2_normalize", " / length / top", " / length", {"x": d(3, 4)}, {}),
    ("masked_mean", "xp.where(mask[..., None], (dy / count)[:, None, :], 0.0)",
     "xp.broadcast_to((dy / count)[:, None, :], x.shape)", {"x": d(3, 5, 2)}, {"mask": MASK}),
    ("attention", "ds @ k * scale", "ds @ k", {"qkv": d(3, 5, 12)}, {"heads": 2}),
    ("attention", "ds = back_softmax(dy @ T(v))", "ds = a * (dy @ T(v))", {"qkv": d(3, 5, 12)}, {"heads": 2}),
    ("attention", "T(ds) @ q, T(a) @ dy", "T(ds) @ q, a @ dy", {"qkv": d(3, 5, 12)}, {"heads": 2}),
    ("attention", "merge(dq), merge(dk), merge(dv)", "merge(dk), merge(dq), merge(dv)",
     {"qkv": d(3, 2, 12)}, {"heads": 2}),
    ("embedding", "backend.scatter_add(flat, ", "backend.scatter_add(flat[::-1], ", {"weight": d(6, 3)}, {"ids": MASK + 2}),
    ("patch_embedding", "(0, 3, 1, 4, 2, 5))\n        return", "(0, 3, 2, 4, 1, 5))\n        return",
     {"images": d(2, 3, 4, 4), "weight": d(5, 12), "bias": d(5)}, {"patch": 2}),
]  # fmt: skip


@pytest.mark.parametrize("case", OPS, ids=[f"{name}: {wrong}" for name, _, wrong, *_ in OPS])
def test_a_fault_in_an_op_is_seen(case):
    name, right, wrong, inputs, fixed = case

    def call(module):
        op = getattr(module, name)
        return (lambda weight, ids: op(ids, weight)) if name == "embedding" else op

    agree(call(ops), inputs, np.random.default_rng(0), None, fixed)
    faulty = call(planted(ops, right, wrong))
    with pytest.raises((AssertionError, ValueError)):
        agree(faulty, inputs, np.random.default_rng(0), None, fixed)


def test_a_forgotten_mask_is_seen():
    """Masks change values before gradients: the oracle sees it."""
    inputs, fixed = {"qkv": d(3, 5, 12)}, {"heads": 2, "mask": MASK}
    sound = lambda qkv, **fixed: oracle.attention(*qkv.chunk(3, -1), **fixed)  # noqa: E731
    agree(ops.attention, inputs, np.random.default_rng(0), sound, fixed)
    faulty = planted(ops, "softmax(q @ T(k), None if mask is None else mask[:, None, None, :])", "softmax(q @ T(k))")
    with pytest.raises(AssertionError, match="y: off by"):
        agree(faulty.attention, inputs, np.random.default_rng(0), sound, fixed)


ALIGNMENT = [
    ("ds + share(dlo, s == lo, ties) + share(dhi, s == hi, ties)", "ds"),
    ("ds + share(dlo, s == lo, ties)", "ds"),
    ("(da - xp.sum(da * a, axis=-1, keepdims=True)) / total", "da / total"),
    ("xp.where(keep, back_second(da), 0.0)", "back_second(da)"),
    ("T(ds) @ key_t) + T(a) @ dc", "T(ds) @ key_t)"),
    ("T(ds) @ key_t) + T(a) @ dc", "T(ds) @ key_t) * 0 + T(a) @ dc"),
    ("back_key_t(ds @ key_v)", "back_key_t(ds @ key_v) * 0"),
    ("keep = x >= sigma", "keep = x > 0.4"),
    ("a = x / total", "a = x / total * 2"),
]
LOSSES = [
    ("0.0), xp.exp(theta) * dv", "0.0), dv"),
    ("dt, dv = xp.exp(theta) * xp.where", "dt, dv = xp.where"),
    ("back_vt(each) + T(back_tv(each))", "back_vt(each) + back_tv(each)"),
    ("back_vt(each) + T(back_tv(each))", "2 * back_vt(each)"),
    ("dt = dt + back_t(T(dlogits) @ c_hat)", "pass"),
    ("return -xp.sum(log_p * own, axis=-1), back", "return -xp.sum(log_p * own, axis=-1) * 1.01, back"),
    ("columns = mask[:, None, :]", "columns = xp.ones_like(mask[:, None, :])"),
    ("length = xp.sum(real, axis=1)[:, None]", "length = xp.ones_like(real) * real.shape[1]"),
    ("dtheta = xp.sum(dlogits * xp.where", "dtheta = 2 * xp.sum(dlogits * xp.where"),
]


def fine_grained(loss_module):
    rng = np.random.default_rng(3)
    mask = MASK[:2]

    def ours(v, t, theta):
        loss, _, back = loss_module.fine_grained_loss(v, t, mask, theta)
        return loss, back

    def theirs(v, t, theta):
        return oracle.fine_grained_loss(v, t, torch.tensor(mask), theta)

    inputs = {"v": rng.standard_normal((2, 7, 6)), "t": rng.standard_normal((2, 5, 6)), "theta": np.asarray(1.1)}
    agree(ours, inputs, rng, theirs)


def grouping(align):
    rng = np.random.default_rng(3)

    def ours(t, v):
        c, _, back = align(t, v)
        return c, back

    def theirs(t, v):
        return torch.stack([oracle.group(t_i, v_i) for t_i, v_i in zip(t, v)])

    agree(ours, {"t": rng.standard_normal((2, 5, 6)), "v": rng.standard_normal((2, 7, 6))}, rng, theirs)


def test_the_sound_code_passes():
    fine_grained(losses)
    grouping(alignment.align_patches)


@pytest.mark.parametrize(("right", "wrong"), ALIGNMENT, ids=[wrong for _, wrong in ALIGNMENT])
def test_a_fault_in_the_alignment_is_seen(right, wrong):
    """By the loss, or, where the fault cancels in the norm that follows (eq. 4's scale), by the alignment's own check."""
    align = planted(alignment, right, wrong).align_patches
    if wrong in ("da / total", "a = x / total * 2"):
        with pytest.raises(AssertionError):
            grouping(align)
        return
    faulty = planted(losses, "REDUCTIONS", "REDUCTIONS")
    faulty.align_patches = align
    with pytest.raises(AssertionError):
        fine_grained(faulty)


@pytest.mark.parametrize(("right", "wrong"), LOSSES, ids=[wrong for _, wrong in LOSSES])
def test_a_fault_in_the_loss_is_seen(right, wrong):
    faulty = planted(losses, right, wrong)
    with pytest.raises(AssertionError):
        fine_grained(faulty)


MODEL = [
    (encoders, "dx1 += dy", "pass"),
    (encoders, "dx += dx1", "pass"),
    (encoders, 'for i, name in enumerate(("query", "key", "value"))', 'for i, name in enumerate(("key", "query", "value"))'),
    (encoders, "lambda dy: r.T @ dy", "lambda dy: (r / r.sum(0)).T @ dy"),
    (model, "df_v += back_pool(dpooled)", "pass"),
    (model, 'g["g_v.weight"] = g["g_v.weight"] + dweight', 'g["g_v.weight"] = dweight'),
    (model, "dweight + dweight_bar", "dweight"),
    (model, "df_t += back_pool(dpooled)", "pass"),
    (model, "dtheta + dtheta_fine", "dtheta"),
    (model, "back_fine(config.lambda_f * dloss)", "back_fine(dloss)"),
]


@pytest.mark.parametrize(("module", "right", "wrong"), MODEL, ids=[wrong for *_, wrong in MODEL])
def test_a_fault_in_the_model_is_seen(module, right, wrong):
    from test_model import TOY, make

    params, *batch = make(np.random.default_rng(1), TOY, size=(20, 16))
    leaves = {n: torch.tensor(p, requires_grad=True) for n, p in params.items()}
    config = model.replace(TOY, lambda_f=2.0)
    oracle.model(leaves, *(torch.tensor(x) for x in batch), config).backward()
    faulty = planted(module, right, wrong)
    if module is encoders:
        tower = planted(model, "import math", "import math")
        tower.vision_tower, tower.text_tower = faulty.vision_tower, faulty.text_tower
        faulty = tower
    # dataclasses look their module up by name; the configuration of the sound one serves both
    for fine, expected in ((model, True), (faulty, False)):
        grads = fine.forward(params, *batch, config)[2]()
        assert expected == all(_agrees(grads[n], leaf.grad.numpy()) for n, leaf in leaves.items())


def _agrees(ours, theirs):
    try:
        close(ours, theirs, "gradient", 1e-11)
    except AssertionError:
        return False
    return True


def test_gradients_are_checked_with_upstream_gradients_that_can_tell():
    """Softmax without its row term passes when the upstream gradient is all ones; ours is random, and fails it."""
    faulty = planted(ops, "dz = da - xp.vecdot(da, a)[..., None]", "dz = da * 0")
    z = d(3, 4)
    assert np.allclose(faulty.softmax(z)[1](np.ones((3, 4))), ops.softmax(z)[1](np.ones((3, 4))))
    with pytest.raises(AssertionError):
        agree(faulty.softmax, {"z": z}, np.random.default_rng(0), lambda z: F.softmax(z, -1))


def test_what_cannot_be_planted_says_so():
    with pytest.raises(AssertionError, match="move the fault to where it went"):
        planted(ops, "this is nowhere", "")


def test_nothing_is_planted_inside_an_expectation():
    """There the error of a fault whose text has moved would pass for the fault being seen."""
    plants = re.compile(r"\b(?:planted\w*|copy|setattr|setitem|delattr|write_text|write_bytes|exec)\(|\.replace\(['\"]")
    looked = 0
    for path in sorted(Path(__file__).parent.rglob("test_*.py")):
        tests = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
        for node in (node for test in tests if not test.name.endswith("says_so") for node in ast.walk(test)):
            if isinstance(node, ast.With) and any("raises(" in ast.unparse(item) for item in node.items):
                body = "\n".join(map(ast.unparse, node.body))
                looked += 1
                assert not plants.search(body), f"{path.name}:{node.lineno} plants inside pytest.raises: {body}"
    assert looked > 100
