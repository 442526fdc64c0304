import functools

import numpy as np
import pytest
import torch

from parity import oracle
from parity.checker.diagnosis.deviations import DEVIATIONS, Found
from parity.checker.diagnosis.switches import WAYS, GlobalVariant, Variant, found_in, variant_of
from parity.checker.diagnosis.variants import compute, evaluate
from parity.checker.probes import HELD_OUT, PROBES
from sparc_ref import fine_grained_loss, global_loss

EVERY = {**PROBES, **HELD_OUT}
VALUES = {
    "threshold.constant": 0.3, "logits.temperature_constant": 0.07, "loss.factor": 2.0, "loss.one_direction": "vt",
    "global.temperature_constant": 0.1, "global.one_direction": "tv", "global.factor": 0.5,
}
SINGLE_CALL = [Found(id_, VALUES.get(id_), way) for id_, ways in WAYS.items() for way in ways]
SINGLE_CALL += [Found(id_, value) for id_, value in VALUES.items()]
SINGLE_CALL += [Found("global.pools_normalised", None, way) for way in ("", "patches", "tokens")]
SINGLE_CALL += [Found("global.pools_padding"), Found("global.uses_cls"), Found("global.uses_cls", None, "patches")]


@functools.cache
def paper(probe_name, pooled=False):
    return evaluate(PROBES[probe_name], Variant(), GlobalVariant("mean", "mean") if pooled else GlobalVariant())


def name(found):
    return f"{found}-{found.way}".strip("-")


@pytest.mark.parametrize("reduction", ["sample", "token"])
@pytest.mark.parametrize("probe", EVERY.values(), ids=lambda p: p.name)
def test_without_deviations_it_is_the_reference(probe, reduction):
    got = compute(probe, [] if reduction == "sample" else ["reduction.token"])
    theta = np.asarray(probe.theta)
    loss, trace, back = fine_grained_loss(probe.v, probe.t, probe.mask, theta, reduction=reduction)
    pairs, _, back_pairs = global_loss(probe.v_bar, probe.t_bar, theta)
    assert abs(got.losses["fine"] - loss) < 1e-13 and abs(got.losses["global"] - pairs) < 1e-13
    for wanted, which, names in ((back(), "fine", ("v", "t", "theta")), (back_pairs(), "global", ("v_bar", "t_bar", "theta"))):
        for key, g in zip(names, wanted):
            np.testing.assert_allclose(got.grads[which][key], g, rtol=0, atol=1e-13)
    for stage in ("similarity", "minmax", "sparse", "weights", "grouped"):
        np.testing.assert_allclose(got.stages[stage][probe.mask], trace[stage][probe.mask], rtol=0, atol=1e-13)
    real = probe.mask[:, :, None] & probe.mask[:, None]
    np.testing.assert_allclose(got.stages["logits_vt"][real], trace["logits_vt"][real], rtol=0, atol=1e-13)
    np.testing.assert_allclose(got.stages["loss_tv"][probe.mask], trace["loss_tv"][probe.mask], rtol=0, atol=1e-13)


@pytest.mark.parametrize("reduction", ["sample", "token"])
@pytest.mark.parametrize("probe", EVERY.values(), ids=lambda p: p.name)
def test_without_deviations_it_is_the_oracle(probe, reduction):
    x = {key: torch.tensor(getattr(probe, key), dtype=torch.float64, requires_grad=True) for key in ("v", "t", "theta")}
    loss = oracle.fine_grained_loss(x["v"], x["t"], torch.tensor(probe.mask), x["theta"], reduction=reduction)
    got = evaluate(probe, Variant(reduction=reduction))
    assert abs(got.losses["fine"] - float(loss.detach())) < 1e-13
    for key, g in zip(x, torch.autograd.grad(loss, list(x.values()))):
        np.testing.assert_allclose(got.grads["fine"][key], g.numpy(), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "options, deviations",
    [
        ({"similarity": "cosine"}, ["similarity.cosine", "similarity.tokens_normalised"]),
        ({"align": "softmax"}, ["weights.softmax"]),
        ({"align": "no_threshold"}, ["threshold.absent"]),
        ({"threshold_on": "weights"}, ["threshold.on_weights"]),
        ({"sigma": 0.3, "similarity": "cosine"}, [Found("threshold.constant", 0.3), "similarity.cosine"]),
        ({"flat": "zero"}, ["minmax.epsilon"]),
    ],
    ids=lambda x: "-".join(map(str, x)),
)
def test_the_oracles_options_are_deviations(options, deviations):
    for probe in (PROBES["padded"], PROBES["unpadded_again"], PROBES["flat"], PROBES["flat_unit"]):
        x = {key: torch.tensor(getattr(probe, key), dtype=torch.float64, requires_grad=True) for key in ("v", "t", "theta")}
        loss = oracle.fine_grained_loss(x["v"], x["t"], torch.tensor(probe.mask), x["theta"], **options)
        got = compute(probe, deviations)
        assert abs(got.losses["fine"] - float(loss.detach())) < 1e-12
        for key, g in zip(x, torch.autograd.grad(loss, list(x.values()))):
            np.testing.assert_allclose(got.grads["fine"][key], g.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("found", SINGLE_CALL, ids=name)
def test_each_deviation_shows_somewhere_and_harmless_ones_nowhere(found):
    """In the loss or in a gradient; a harmless one in neither."""
    off = 0.0
    for probe in PROBES.values():
        if off > 1e-3 and not DEVIATIONS[found.id].harmless:
            break
        want = paper(probe.name, found.id.startswith(("global.pools", "global.uses")))
        got = compute(probe, [found])
        for which in ("fine", "global"):
            off = max(off, abs(np.nan_to_num(got.losses[which], nan=9, posinf=9) - want.losses[which]))
            for key, g in got.grads[which].items():
                off = max(off, np.abs(np.nan_to_num(g, nan=9) - want.grads[which][key]).max(initial=0))
    if DEVIATIONS[found.id].harmless:
        assert off < 1e-12
    elif found.id != "threshold.strict":                  # that one needs a knife edge
        assert off > 1e-3


NAMED = [d for d in SINGLE_CALL if d.id != "logits.directions_swapped"]  # the mean of both directions has no order


@pytest.mark.parametrize("found", NAMED, ids=name)
def test_deviations_have_their_names_back(found):
    settings = variant_of([found])
    back = found_in(*settings)
    assert [d.id for d in back] == [found.id]
    assert variant_of(back) == settings


@pytest.mark.parametrize("found", SINGLE_CALL, ids=name)
def test_hidden_by_is_measured(found):
    """Under each condition that the table says hides it, loss and gradient are the paper's on all probes."""
    for condition in DEVIATIONS[found.id].hidden_by:
        if found.id.startswith("global.") or found.way == "those at the same place":  # that one is 0 where B = 1
            continue
        for probe in (p for p in PROBES.values() if condition in p.holds):
            if condition == "equal lengths" and not probe.mask.any(1).all():
                continue
            got, same = evaluate(probe, variant_of([found])[0]), paper(probe.name)
            assert abs(got.losses["fine"] - same.losses["fine"]) < 1e-12, (condition, probe.name)
            for key, g in got.grads["fine"].items():
                want = same.grads["fine"][key]
                if key == "v" and condition == "unit-norm patches":
                    g, want = (x - (x * probe.v).sum(-1, keepdims=True) * probe.v for x in (g, want))
                np.testing.assert_allclose(g, want, rtol=0, atol=1e-12, err_msg=f"{condition}, {probe.name}, {key}")


def test_deviations_compose():
    """Cosine with a constant threshold, padding that competes, and a mean over everything: written out for one batch."""
    probe = PROBES["padded"]
    v, t = torch.tensor(probe.v), torch.tensor(probe.t)
    s = t @ torch.nn.functional.normalize(v, dim=-1).mT
    s = (s - s.amin(-1, keepdim=True)) / (s.amax(-1, keepdim=True) - s.amin(-1, keepdim=True))
    s = torch.where(s >= 0.3, s, 0.0)
    c = torch.nn.functional.normalize(s / s.sum(-1, keepdim=True) @ v, dim=-1)
    z = torch.exp(torch.tensor(probe.theta, dtype=torch.float64)) * c @ torch.nn.functional.normalize(t, dim=-1).mT
    loss = -(z.log_softmax(-1) + z.log_softmax(-2)).diagonal(dim1=1, dim2=2).mean() / 2
    got = compute(
        probe, ["similarity.cosine", Found("threshold.constant", 0.3), "logits.padding_not_masked", "reduction.mean_all"]
    )
    assert abs(got.losses["fine"] - float(loss)) < 1e-13


def test_wrong_requests_are_named():
    for wrong, words in (
        (["similarity.angle"], "expected ids of parity.checker.diagnosis.deviations, got 'similarity.angle'"),
        (["threshold.constant"], "expected a value"),
        ([Found("similarity.detached", None, "somehow")], "expected a way"),
        (["edge.mutates_inputs"], "no property of a single call"),
    ):
        with pytest.raises(ValueError, match=words):
            compute(PROBES["padded"], wrong)
