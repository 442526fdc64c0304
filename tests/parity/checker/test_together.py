"""What is said of one thing stays true beside another: two limits, a wrong part of a total, two inputs, zeros and NaN."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from boxes import box, plain, wrapped

from parity.checker.diagnosis.asking import Box, loss_off
from parity.checker.diagnosis.diagnose import diagnose
from parity.checker.diagnosis.switches import GlobalVariant, Variant
from parity.checker.diagnosis.variants import evaluate
from parity.checker.probes import PROBES, Answer


def spoilt(change, **kwargs):
    """A box whose answers are changed."""
    right = box(Variant(), **kwargs)

    def ask(probe):
        answer = right(probe)
        change(probe, answer)
        return answer

    return ask


def double(probe, answer):
    answer.grads["total"]["v"] = answer.grads["total"]["v"] + evaluate(probe, Variant()).grads["fine"]["v"]


def flat_rows(probe, answer):
    if probe.flat:
        answer.grads["total"]["v"] = answer.grads["total"]["v"] + 0.1


@pytest.mark.parametrize("change, found", [(double, ["gradient.v.factor(2)"]), (flat_rows, ["gradient.flat_rows"])])
def test_a_total_whose_fine_gradient_is_wrong_has_a_right_global_loss(change, found):
    d = diagnose(spoilt(change, pairs=GlobalVariant(), weights=(0.5, 1.0)))
    assert [str(x) for x in d.deviations] == found
    assert d.losses["global"].verdict == "eq6" and "Your global loss equals eq. 1" in d.note
    assert "differs from eq. 1" not in d.note


@pytest.mark.parametrize("flat", [
    "nan", pytest.param("nan_gradient", marks=pytest.mark.slow), pytest.param("nan_gradient_zero", marks=pytest.mark.slow)])
def test_a_total_that_is_nan_on_flat_rows_has_a_right_global_loss(flat):
    d = diagnose(box(Variant(flat=flat), GlobalVariant(), (0.5, 2.0)))
    assert d.conditions == ("no flat rows",) and d.losses["global"].verdict == "eq6", d.note
    d = diagnose(box(Variant(flat=flat), GlobalVariant("mean", "mean", padding=True), (0.5, 2.0)))
    assert "global.pools_padding" in [x.id for x in d.deviations] and "explains it" not in d.note, d.note


@pytest.mark.slow
def test_a_global_loss_beside_what_nothing_explains():
    def ask(probe):
        answer = box(Variant(), GlobalVariant(), (0.5, 2.0))(probe)
        extra = 3 * answer.losses["total"] ** 2 if probe.t.shape[1] > 1 else 0.0
        return Answer({"total": answer.losses["total"] + extra})

    d = diagnose(ask)
    assert d.verdict == "unexplained" and d.losses["fine"].verdict == "unexplained"
    assert "Your global loss equals eq. 1" in d.note and "Only captions of one token tell it" in d.note, d.note


@pytest.mark.parametrize("patches, samples", [pytest.param(512, 128, marks=pytest.mark.slow), (300, 100)])
def test_two_limits_are_each_a_limit(patches, samples):
    def ask(probe):
        cut = replace(probe, v=probe.v[:samples, :patches], t=probe.t[:samples], mask=probe.mask[:samples])
        made = evaluate(cut, Variant())
        grads = {}
        for name in ("v", "t"):
            grads[name] = np.zeros(np.shape(getattr(probe, name)))
            grads[name][:samples, :patches if name == "v" else None] = made.grads["fine"][name]
        return Answer({"fine": made.losses["fine"]}, {"fine": grads | {"theta": made.grads["fine"]["theta"]}})

    d = diagnose(ask)
    assert d.conditions == (f"at most {patches} patches", f"at most {samples} samples in a batch")
    assert "do not agree with one limit" not in d.note
    assert f"From {patches + 1} patches on it differs" in d.note and f"From {samples + 1} samples on it differs" in d.note


def test_sizes_without_a_limit_are_said_to_have_none():
    def ask(probe):
        odd = probe.v.shape[1] > 100 and probe.v.shape[1] % 2
        made = evaluate(probe, Variant(sigma=0.3) if odd else Variant())
        return Answer({"fine": made.losses["fine"]}, {"fine": {k: made.grads["fine"][k] for k in ("v", "t", "theta")}})

    assert "do not agree with one limit" in diagnose(ask).note


def test_short_captions_are_not_taken_for_padding():
    """Captions of one and two tokens are left out of the mean: unequal lengths of three and more are right."""
    def long_ones(each, mask):
        n = mask.sum(1)
        means = torch.where(mask, each, 0.0).sum(1) / n.clamp(min=1)
        return torch.where(n >= 3, means, 0.0).sum() / (n >= 3).sum().clamp(min=1)

    d = diagnose(wrapped(plain, mean=long_ones))
    assert d.verdict == "conditional" and "at least 3 tokens in a caption" in d.conditions, d.note
    assert not {"no padding", "equal lengths"} & set(d.conditions)


def test_a_global_loss_that_nothing_explains_is_measured_against_the_means_that_it_makes():
    def contrast(v, t, mask, theta, change=lambda cosine: cosine):
        pooled = v.mean(1), torch.where(mask[..., None], t, 0.0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        z = theta.exp() * change(F.normalize(pooled[0], dim=1) @ F.normalize(pooled[1], dim=1).T)
        target = torch.arange(len(z))
        return (F.cross_entropy(z, target) + F.cross_entropy(z.T, target)) / 2

    def as_global(**how):
        fine = wrapped(contrast, **how)
        return lambda p: Answer({"global": (a := fine(p)).losses["fine"]}, {"global": a.grads["fine"]})

    odd, eq1 = as_global(change=lambda cosine: cosine.abs().sqrt()), as_global()
    d = diagnose(odd)
    assert d.verdict == "unexplained"
    for off in d.off:
        given, wanted = (ask(PROBES[off.probe]).losses["global"] for ask in (odd, eq1))
        assert off.loss == pytest.approx(loss_off(given, wanted), rel=1e-6)


def test_what_took_too_long_and_what_float32_raises_is_said():
    right = box(Variant())

    def ask(probe):
        slow = probe.v.shape[1] > 150
        return Answer(error="time: it took longer than 3 s") if slow else right(probe)

    refused = Answer(error="AssertionError: float64 at f.py:1")
    def again(probe, upstream=1.0, dtype=None):
        grads = {name: upstream * g for name, g in right(probe).grads["fine"].items()}
        return refused if dtype else Answer(right(probe).losses, {"fine": grads})

    ask.again = again
    d = diagnose(ask)
    assert d.verdict == "eq6" and "a call did not end within its limit of time: such sizes were not tried" in d.note
    assert "In float32 it raises AssertionError: float64 at f.py:1." in d.note and d.tried["P"][1] == 144


def test_nan_gradients_beside_groups_of_no_patches():
    d = diagnose(box(Variant(flat="nan_gradient_zero")))
    assert "gets c = 0, and the gradient is NaN" in d.note and max(o.loss for o in d.off if o.probe == "flat") > 0.05
    d = diagnose(box(Variant(flat="nan_gradient")))
    assert "the loss is finite and its gradient NaN on flat rows" in d.note


def test_the_loss_is_the_papers_beside_a_theta_without_gradient():
    def change(probe, answer):
        answer.grads["fine"]["theta"] = np.zeros(())
        answer.grads["fine"]["t"] = evaluate(probe, Variant(detach="tokens")).grads["fine"]["t"]

    d = diagnose(spoilt(change))
    assert {x.id for x in d.deviations} == {"similarity.detached", "edge.no_gradient"}, d.note
    assert "The loss itself is that of eq. 6" in d.note and "explained by the rest" not in d.note


class Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g.clamp(-0.01, 0.01)


def test_every_input_with_an_unexplained_gradient_is_named():
    def ask(probe):
        x = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (probe.v, probe.t, probe.theta)]
        loss = plain(x[0], x[1], torch.tensor(probe.mask), x[2], average=lambda a, v, t: Clip.apply(a @ v))
        grads = {k: g.numpy() for k, g in zip(("v", "t", "theta"), torch.autograd.grad(loss, x))}
        return Answer({"fine": float(loss.detach())}, {"fine": grads})

    d = diagnose(ask)
    assert d.verdict == "unexplained" and d.stage == "gradient"
    assert "The gradient for patches is off by" in d.note and "The gradient for tokens is off by" in d.note
    assert "The gradient for theta is right" in d.note


@pytest.mark.slow
def test_equal_lengths_are_said_once():
    def ask(probe):
        made, n = evaluate(probe, Variant()), np.sqrt(probe.mask.sum(1))
        each = [evaluate(replace(probe, name="one", v=probe.v[i:i + 1], t=probe.t[i:i + 1], mask=probe.mask[i:i + 1]),
                         Variant()).losses["fine"] for i in range(len(probe.v))]
        return Answer({"fine": float((n * each).sum() / max(n.sum(), 1.0)) if len(each) > 1 else made.losses["fine"]})

    d = diagnose(ask)
    assert d.conditions == ("equal lengths",) and d.note.count("equal length") == 1, d.note


@pytest.mark.parametrize("setting", [Variant(sigma=0.3), Variant(constant=1.0, constant_of="log(1/tau)"), Variant(gain=0.25)])
def test_one_deviation_moves_the_loss_by_what_the_table_says(setting):
    d = diagnose(box(setting))
    (effect,), table = d.effects, {o.probe: o for o in d.off}
    assert effect.loss == pytest.approx(table[effect.probe].loss)
    assert effect.gradient == pytest.approx(table[effect.probe].gradient)


@pytest.mark.slow
def test_each_effect_is_its_own():
    """An epsilon is finite beside what is not, and moves flat rows beside a cosine that has none there."""
    eps = diagnose(box(Variant(flat="zero"))).effects[0]
    for beside in (Variant(flat="zero", inf_padding="loss"), Variant(flat="zero", cosine=True)):
        by_id = {e.id: e for e in diagnose(box(beside)).effects}
        assert by_id["minmax.epsilon"] == eps and 0.01 < eps.loss < 1


def test_one_loss_that_is_a_float32_by_chance_does_not_tell_the_precision():
    def ask(probe):
        value = evaluate(probe, Variant()).losses["fine"]
        return Answer({"fine": value}, dtype="float32" if probe.name == "padded" else "float64")

    seen = Box(ask)
    for name in ("padded", "single", "unpadded"):
        seen(PROBES[name])
    assert seen.dtype() == "float64"
    seen = Box(lambda probe: replace(ask(probe), dtype="float32"))
    seen(PROBES["single"])
    assert seen.dtype() == "float32"
