"""Weighted totals, taken apart; answers without gradients, in single precision, or with some missing."""

import functools

import numpy as np
import pytest
import torch
from boxes import (
    box,
    plain,
    said,
)

from parity.checker.diagnosis.diagnose import diagnose
from parity.checker.diagnosis.switches import GlobalVariant, Variant, found_in
from parity.checker.diagnosis.variants import evaluate
from parity.checker.probes import Answer


@pytest.mark.parametrize("lambdas", [
    (0.5, 1.0), pytest.param((1.0, 10.0), marks=pytest.mark.slow), pytest.param((0.3, 0.5), marks=pytest.mark.slow)])
@pytest.mark.parametrize("pools", [GlobalVariant(), GlobalVariant("mean", "mean")], ids=["given", "pooled"])
def test_total_of_sound_losses(lambdas, pools):
    d = diagnose(box(Variant(), pools, lambdas))
    assert d.verdict == "eq6" and not d.deviations
    assert d.lambdas == {"lambda_g": lambdas[0], "lambda_f": lambdas[1]}


@pytest.mark.slow
def test_total_of_faulty_losses_is_taken_apart():
    pools = GlobalVariant("mean", "mean", padding=True)
    d = diagnose(box(Variant(sigma=0.3, open_vt="open", open_tv="open"), pools, (0.5, 5.0)))
    assert said(d) == ["global.pools_padding", "logits.padding_not_masked", "threshold.constant(0.3)"]
    assert d.lambdas == {"lambda_g": 0.5, "lambda_f": 5.0} and d.losses["global"].conditions == ("no padding",)
    d = diagnose(box(Variant(negatives="batch"), GlobalVariant("mean", "mean"), (0.5, 1.0)))
    assert said(d) == ["logits.batch_negatives"] and d.lambdas == {"lambda_g": 0.5, "lambda_f": 1.0}


def test_what_is_added_to_a_loss_is_no_global_loss():
    """A tenth of the patches' mean length: one token of one caption has it too."""
    def ask(probe):
        r = evaluate(probe, Variant(), GlobalVariant())
        more = 0.1 * float(np.linalg.norm(probe.v, axis=-1).mean())
        return Answer({"fine": r.losses["fine"], "total": r.losses["fine"] + more}, {})

    d = diagnose(ask)
    assert d.verdict == "unexplained" and "Your total holds something that is neither eq. 1 nor eq. 6" in d.note
    assert "Your global loss" not in d.note and "Your fine-grained loss equals eq. 6" in d.note


def test_losses_beside_their_total():
    d = diagnose(box(Variant(), GlobalVariant("unit", "mean"), (0.5, 1.0), names=("fine", "total")))
    assert said(d) == ["global.pools_normalised"] and d.lambdas == {"lambda_g": 0.5, "lambda_f": 1.0}
    d = diagnose(box(Variant(negatives="batch"), GlobalVariant("mean", "mean"), (0.0, 1.0), names=("global", "total")))
    assert said(d) == ["logits.batch_negatives"]


@pytest.mark.slow
def test_values_alone_are_enough_and_it_says_so():
    d = diagnose(box(Variant(sigma=0.3, cosine=True), grads=False))
    assert said(d) == ["similarity.cosine", "threshold.constant(0.3)"] and "values alone" in d.note
    d = diagnose(box(Variant(), grads=False))
    assert d.verdict == "eq6" and "values alone" in d.note


def test_single_precision():
    """Computed in float32 throughout, without saying so."""
    def single(**how):
        def ask(probe):
            x = [torch.tensor(a, dtype=torch.float32, requires_grad=True) for a in (probe.v, probe.t, probe.theta)]
            y = plain(x[0], x[1], torch.tensor(probe.mask), x[2], **how)
            g = torch.autograd.grad(y, x)
            return Answer({"fine": float(y.detach())}, {"fine": {k: a.numpy() for k, a in zip(("v", "t", "theta"), g)}})

        return ask

    assert diagnose(single()).verdict == "eq6"
    d = diagnose(single(fill=0.0, cut=lambda h: torch.where(h >= 0.3, h, 0.0)))
    assert said(d) == ["logits.padding_filled_zero", "threshold.constant(0.3)"] and d.verdict == "explained"


@pytest.mark.slow
def test_missing_gradients_are_told_from_zero_ones():
    def ask(probe, drop=None, zero=None):
        r = evaluate(probe, Variant())
        g = {k: np.zeros_like(x) if k == zero else x for k, x in r.grads["fine"].items() if k != drop}
        return Answer(r.losses, {"fine": g})

    assert diagnose(functools.partial(ask, drop="theta")).verdict == "eq6"
    for what in ("theta", "v", "t"):
        assert said(diagnose(functools.partial(ask, zero=what))) == [f"edge.no_gradient({what})"]


@pytest.mark.parametrize("path", [
    "c", "patches", *(pytest.param(x, marks=pytest.mark.slow) for x in ("range", "values", "t", "tokens"))])
def test_single_detached_paths(path):
    d = diagnose(box(Variant(detach=path)))
    assert d.verdict == "explained" and said(d) == [str(x) for x in found_in(Variant(detach=path))]


def changed(how, pools=None):
    """A total 0.5 L_g + L_f, or L_g alone, whose gradients `how` changes: how(gradients of L_g, probe)."""
    def ask(probe):
        r = evaluate(probe, Variant(), GlobalVariant())
        g = {k: np.array(x) for k, x in r.grads["global"].items()}
        how(g, probe)
        if pools:
            return Answer({"global": r.losses["global"]}, {"global": g})
        total = {k: 0.5 * g.get(k, 0.0) + r.grads["fine"].get(k, 0.0) for k in (*r.grads["fine"], "v_bar", "t_bar")}
        return Answer({"total": 0.5 * r.losses["global"] + r.losses["fine"]}, {"total": total})

    return ask


def test_a_total_whose_global_part_has_another_gradient():
    d = diagnose(changed(lambda g, p: g.update(t_bar=0 * g["t_bar"])))
    assert d.verdict == "unexplained" and "The gradient for the text is zero." in d.note
    assert "The gradients for theta and the image are right." in d.note and d.losses["fine"].verdict == "eq6", d.note


def test_a_gradient_of_eq_1_by_its_directions():
    def one_way(way):
        return lambda p: evaluate(p, pairs=GlobalVariant(direction=way)).grads["global"]

    def keys_cut(g, p):
        g.update(v_bar=0.5 * one_way("vt")(p)["v_bar"], t_bar=0.5 * one_way("tv")(p)["t_bar"])

    d = diagnose(changed(keys_cut, pools=True))
    assert "The gradient for theta is right." in d.note, d.note
    assert "The gradient for the image is that of the direction in which images pick texts alone." in d.note
    assert "The gradient for the text is that of the direction in which texts pick images alone." in d.note
    d = diagnose(changed(lambda g, p: g.update(v_bar=np.clip(g["v_bar"], -0.02, 0.02)), pools=True))
    assert "The gradient for the image is off by" in d.note and "direction" not in d.note
