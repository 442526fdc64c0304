"""Right losses with wrong gradients: each is named by input and path, and what is no combination of its parts is not named."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from parity.checker.diagnosis.deviations import DEVIATIONS
from parity.checker.diagnosis.diagnose import diagnose
from parity.checker.diagnosis.switches import Variant
from parity.checker.diagnosis.variants import evaluate
from parity.checker.probes import PROBES, Answer


def plain(v, t, mask, theta, cut=()):
    """Eq. 6 for torch, written here; cut: which paths are detached, for all inputs alike."""
    def through(x, name):
        return x.detach() if name in cut else x

    s = through(t, "query") @ through(v, "key").mT
    low, high = through(s.amin(2, keepdim=True), "min"), s.amax(2, keepdim=True)
    same = low == high
    h = torch.where(same, 1.0, (s - low) / torch.where(same, 1.0, high - low))
    h = torch.where(h >= 1 / v.shape[1], h, 0.0)
    c = h / h.sum(2, keepdim=True) @ through(v, "value")
    u = through(t, "side")
    c, u = (x / through(torch.where((x == 0).all(2, keepdim=True), 1.0, x).norm(dim=2, keepdim=True), name)
            for x, name in ((c, "length of c"), (u, "length of t")))  # fmt: skip
    z = theta.exp() * c @ u.mT
    vt, tv = (y.masked_fill(~mask[:, None], -torch.inf).log_softmax(2).diagonal(dim1=1, dim2=2) for y in (z, z.mT))
    each = -(through(vt, "vt") + through(tv, "tv")) / 2
    return (torch.where(mask, each, 0.0).sum(1) / mask.sum(1).clamp(min=1)).mean()


def grads_of(probe, cut=()):
    x = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (probe.v, probe.t, probe.theta)]
    loss = plain(x[0], x[1], torch.tensor(probe.mask), x[2], cut)
    return float(loss.detach()), {k: g.numpy().copy() for k, g in zip(("v", "t", "theta"), torch.autograd.grad(loss, x))}


def box(change, **lacks):
    """change(grads, probe) spoils the gradients; lacks: input -> paths that its gradient does not take."""
    def ask(probe):
        value, grads = grads_of(probe)
        for leaf, cut in lacks.items():
            grads[leaf] = grads_of(probe, cut)[1][leaf]
        if change is not None:
            change(grads, probe)
        return Answer({"fine": value}, {"fine": grads})

    return ask


def times(leaf, k):
    def change(grads, probe):
        grads[leaf] = grads[leaf] * (k(probe) if callable(k) else k)

    return change


def at_padding(grads, probe):
    grads["t"][~probe.mask] = 1e-3


def both(*changes):
    def change(grads, probe):
        for one in changes:
            one(grads, probe)

    return change


LACKS_C, LENGTHS = "its path through c", "the path through the length of"
CASES = {
    "sign of t": (box(times("t", -1)), ["gradient.t.sign"]),
    "half of v": (box(times("v", 0.5)), ["gradient.v.factor(0.5)"]),
    "theta twice": (box(times("theta", 2.0)), ["gradient.theta.factor(2)"]),
    "theta by tau": (box(times("theta", lambda p: -np.exp(p.theta))), ["gradient.theta.of_tau"]),
    "theta without exp": (box(times("theta", lambda p: np.exp(-p.theta))), ["gradient.theta.of_scale"]),
    "v without 1/tau": (box(times("v", lambda p: np.exp(-p.theta))), ["gradient.v.factor(tau)"]),
    "t not divided by B": (box(times("t", lambda p: len(p.v))), ["gradient.t.factor(B)"]),
    "padding": (box(at_padding), ["gradient.padding_not_zero"]),
    "sign and padding": (box(both(times("t", -1), at_padding)), ["gradient.t.sign", "gradient.padding_not_zero"]),
    "sign of t, half of v": (box(both(times("t", -1), times("v", 0.5))), ["gradient.v.factor(0.5)", "gradient.t.sign"]),
    "v without the minimum": (box(None, v=("min",)), ["gradient.v.path(the path through the minimum)"]),
    "t without the minimum": (box(None, t=("min",)), ["gradient.t.path(the path through the minimum)"]),
    "t without its length": (box(None, t=("length of t",)), [f"gradient.t.path({LENGTHS} t)"]),
    "t without the length of c": (box(None, t=("length of c",)), [f"gradient.t.path({LENGTHS} c)"]),
    "v without the length of c": (box(None, v=("length of c",)), [f"gradient.v.path({LENGTHS} c)"]),
    "t in one direction": (box(None, t=("vt",)), ["gradient.t.path(the direction in which groups pick tokens)"]),
    "v in one direction": (box(None, v=("tv",)), ["gradient.v.path(the direction in which tokens pick groups)"]),
    "theta in one direction": (box(None, theta=("vt",)), ["gradient.theta.path(the direction in which groups pick tokens)"]),
    "no lengths anywhere": (
        box(None, v=("length of c", "length of t"), t=("length of c", "length of t")),
        [f"gradient.v.path({LENGTHS} c)", "gradient.t.path(the paths through the lengths of c and t)"]),
    "t without c, v without values": (
        box(None, t=("query",), v=("value",)),
        [f"gradient.t.path({LACKS_C})", "gradient.v.path(its path as values that are averaged)"]),
    "t without c and one direction": (
        box(None, t=("query", "tv")), [f"gradient.t.path({LACKS_C})",
                                       "gradient.t.path(the direction in which tokens pick groups)"]),
    "half of t, which lacks c": (
        box(times("t", 0.5), t=("query",)), [f"gradient.t.path({LACKS_C})", "gradient.t.factor(0.5)"]),
    "keys alone": (box(None, v=("value",)), ["grouping.detached"]),
    "values alone": (box(None, v=("key",)), ["similarity.detached"]),
    "t without c": (box(None, t=("query",)), ["similarity.detached"]),
}  # fmt: skip


QUICK = {"sign of t", "theta by tau", "t not divided by B", "no lengths anywhere", "half of t, which lacks c"}


@pytest.mark.parametrize("name", [pytest.param(x, marks=() if x in QUICK else pytest.mark.slow) for x in CASES])
def test_wrong_gradient_is_named(name):
    ask, wanted = CASES[name]
    d = diagnose(ask)
    hidden = wanted[0] in ("gradient.padding_not_zero", "gradient.t.factor(B)")
    assert d.verdict == ("conditional" if hidden else "explained"), d.note
    assert sorted(map(str, d.deviations)) == sorted(wanted), d.note
    assert d.reproduced_to < 1e-7 and "The loss itself is that of eq. 6 on all 31 batches asked" in d.note
    assert d.stage == wanted[0].split(".")[0]


def test_the_gradient_of_the_written_loss_is_the_papers():
    for name in ("padded", "flat", "all_padding", "unit_padded"):
        value, grads = grads_of(PROBES[name])
        paper = evaluate(PROBES[name], Variant())
        assert abs(value - paper.losses["fine"]) < 1e-13
        for leaf, g in grads.items():
            np.testing.assert_allclose(g, paper.grads["fine"][leaf], rtol=0, atol=1e-13)


def decayed(grads, probe):
    grads["t"] += 1e-3 * probe.t


def clipped(grads, probe):
    grads["v"] = np.clip(grads["v"], -0.02, 0.02)


def rolled(grads, probe):
    grads["v"] = np.roll(grads["v"], 1, axis=1)


@pytest.mark.parametrize("change, words, right", [
    (decayed, "gradient for tokens is off by", "patches and theta"),
    (clipped, "gradient for patches is off by", "tokens and theta"),
    (rolled, "gradient for patches is off by", "tokens and theta"),
], ids=["decay", "clip", "roll"])  # fmt: skip
def test_what_no_part_explains_is_said_with_its_place(change, words, right):
    d = diagnose(box(change))
    assert d.verdict == "unexplained" and d.stage == "gradient" and not d.deviations
    assert words in d.note and f"The gradients for {right} are right" in d.note and "of its largest entry" in d.note
    assert "differs from eq. 6 in its gradient" in d.note


def test_beside_another_deviation():
    """A constant threshold and padding that competes, and half a gradient."""
    def ask(probe):
        r = evaluate(probe, Variant(sigma=0.3, open_vt="open", open_tv="open"))
        return Answer(r.losses, {"fine": r.grads["fine"] | {"v": 0.5 * r.grads["fine"]["v"]}})

    d = diagnose(ask)
    assert [str(x) for x in d.deviations] == ["threshold.constant(0.3)", "logits.padding_not_masked", "gradient.v.factor(0.5)"]
    assert "that of eq. 6" not in d.note


def test_flat_rows():
    """A gradient that flows through rows without a range, as if they had one."""
    def change(grads, probe):
        if probe.flat:
            grads["t"][0, 1] += 0.25

    d = diagnose(box(change))
    assert [str(x) for x in d.deviations] == ["gradient.flat_rows"] and d.conditions == ("no flat rows",), d.note


def test_gradients_of_single_precision():
    def ask(probe):
        value, grads = grads_of(probe)
        grads = {k: np.float32(g * (-1 if k == "t" else 1)).astype(np.float64) for k, g in grads.items()}
        return Answer({"fine": float(np.float32(value))}, {"fine": grads}, dtype="float32")

    assert [str(x) for x in diagnose(ask).deviations] == ["gradient.t.sign"]


def test_gates_are_exact():
    """A gate of 1 changes nothing, of 0 is what detaching is."""
    probe = PROBES["padded"]
    for gate, cut in (("queries", "query"), ("keys", "key"), ("values", "value"), ("t", "side"), ("min", "min"), ("vt", "vt"),
                      ("tv", "tv"), ("norm_c", "length of c"), ("norm_t", "length of t")):  # fmt: skip
        whole, shut = (evaluate(probe, replace(Variant(), gates=((gate, k),))) for k in (1.0, 0.0))
        value, grads = grads_of(probe, (cut,))
        assert whole.losses == shut.losses == evaluate(probe, Variant()).losses and abs(shut.losses["fine"] - value) < 1e-13
        for leaf, g in grads.items():
            np.testing.assert_allclose(shut.grads["fine"][leaf], g, rtol=0, atol=1e-13, err_msg=gate)


def test_every_input_has_the_same_kinds():
    kinds = {leaf: {x.split(".")[2] for x in DEVIATIONS if x.startswith(f"gradient.{leaf}.")} for leaf in ("v", "t", "theta")}
    assert kinds["v"] == kinds["t"] == kinds["theta"] - {"of_tau", "of_scale"}
