"""What the checker must not skip: gradients in float32 as well, and every test of behaviour, from the answer to the report."""

import math

import numpy as np
import pytest

import parity
from parity.checker.diagnosis.behaviour import behaviour
from parity.checker.diagnosis.diagnose import Diagnosis, diagnose
from parity.checker.probes import HELD_OUT, Answer
from sparc_ref import fine_grained_loss


def asked(dtype="float64", change=lambda probe, loss, grads: (loss, grads), **options):
    """The reference as a black box, its answers changed after the fact; a folder of answers rather than something to call."""
    def ask(probe):
        v, t, theta = (np.asarray(x, dtype) for x in (probe.v, probe.t, probe.theta))
        loss, _, back = fine_grained_loss(v, t, probe.mask, theta, **options)
        grads = {name: np.asarray(g, dtype) for name, g in zip(("v", "t", "theta"), back(1.0))}
        loss, grads = change(probe, float(loss), grads)
        return Answer({"fine": loss}, {"fine": grads}, dtype=dtype)

    ask.worker = None
    return ask


def scaled(name, factor):
    def change(probe, loss, grads):
        if name == "loss":
            return float(np.float32(loss * factor)), grads
        return loss, grads | {name: (grads[name] * factor).astype(grads[name].dtype)}

    return change


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_reference_equals_eq_6_in_either_precision(dtype):
    assert diagnose(asked(dtype)).verdict == "eq6"


@pytest.mark.parametrize("name, factor", [
    ("t", 0.9), ("v", 1.02), *(pytest.param(*x, marks=pytest.mark.slow) for x in (("v", 1.1), ("theta", 1.1), ("loss", 1.01)))])
def test_in_float32_a_wrong_gradient_is_wrong_too(name, factor):
    assert diagnose(asked("float32", scaled(name, factor))).verdict not in ("eq6", "listing1")


def test_in_float32_a_gradient_that_is_wrong_at_real_sizes_alone_is_seen():
    """6 % of its largest entry, with more than 100 patches: twice what rounding may do there."""
    def change(probe, loss, grads):
        return loss, (grads | {"v": 1.06 * grads["v"]} if probe.v.shape[1] > 100 else grads)

    found = diagnose(asked("float32", change))
    assert found.verdict == "conditional" and found.conditions == ("at most 100 patches",), found.note


def test_an_explanation_has_to_hold_on_probes_that_the_search_did_not_use():
    """Sigma is 0.3, but not where the explanation is put to the test."""
    held_out = set(HELD_OUT)

    def elsewhere(probe, loss, grads):
        return (loss * 1.01 if probe.name in held_out else loss), grads

    assert diagnose(asked(sigma=0.3)).verdict == "explained"
    assert diagnose(asked(change=elsewhere, sigma=0.3)).verdict == "unexplained"


def test_float64_is_judged_as_float64(tmp_path):
    """A gradient off by 1e-5 would be rounding in float32."""
    path = tmp_path / "nearly.py"
    path.write_text('''
from sparc_ref import fine_grained_loss

def loss(patches, tokens, mask, theta):
    value, trace, back = fine_grained_loss(patches, tokens, mask, theta)

    def nearly(dloss=1.0):
        dv, dt, dtheta = back(dloss)
        return dv, dt * (1 + 1e-5), dtheta

    return value, trace, nearly
''')
    report = parity.check(str(path))
    assert report.convention.dtype == "float64" and report.verdict not in ("eq6", "cannot_run")


# each change is seen by one test of behaviour, which has to be run
def lost(probe, loss, grads):
    return loss, grads | {"t": 0 * grads["t"]}


def leaks(probe, loss, grads):
    return loss + probe.t[~probe.mask].sum(), grads


def leaks_in_a_gradient(probe, loss, grads):
    return loss, grads | {"v": grads["v"] * (1 + 1e-3 * np.sin(probe.t[~probe.mask].sum()))}


def zeros_poison(probe, loss, grads):
    return math.nan if (~probe.t.any(-1) & ~probe.mask).any() else loss, grads


def nan_where_flat(probe, loss, grads):
    return loss, grads | {"t": grads["t"] * (math.nan if probe.name == "flat" else 1)}


def empty_poisons(probe, loss, grads):
    return loss if probe.mask.any(1).all() else math.nan, grads


def first_counts(probe, loss, grads):
    return loss + 0.1 * probe.t[0, 0, 0], grads


def last_patch_counts(probe, loss, grads):
    return loss + 0.1 * probe.v[:, -1].sum(), grads


def more_for_more(probe, loss, grads):
    return loss * len(probe.v), grads


@pytest.mark.parametrize("change, wanted", [
    (lost, "edge.no_gradient"), (leaks, "edge.padding_leak"), (leaks_in_a_gradient, "edge.padding_leak"),
    (zeros_poison, "edge.zero_padding"), (nan_where_flat, "edge.nan_gradient"), (empty_poisons, "edge.all_padding"),
    (first_counts, "edge.order_dependent"), (last_patch_counts, "edge.order_dependent"), (more_for_more, "edge.batch_split"),
])
def test_every_test_of_behaviour_is_run(change, wanted):
    found = {x.found.id for x in behaviour(asked(change=change), Diagnosis("eq6")).findings}
    assert wanted in found


def leaks_a_little(probe, loss, grads):
    return loss * float(np.float32(1 + 0.05 * np.sin(probe.t[~probe.mask].sum()))), grads


def leaks_a_little_in_a_gradient(probe, loss, grads):
    return loss, grads | {"v": grads["v"] * np.float32(1 + 0.2 * np.sin(probe.t[~probe.mask].sum()))}


@pytest.mark.parametrize("change", [leaks_a_little, leaks_a_little_in_a_gradient])
def test_in_float32_a_few_per_cent_are_no_rounding(change):
    assert "edge.padding_leak" in {x.found.id for x in behaviour(asked("float32", change), Diagnosis("eq6")).findings}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sound_answers_have_no_findings(dtype):
    assert behaviour(asked(dtype), Diagnosis("eq6")).findings == ()


def test_the_report_holds_what_behaviour_found(tmp_path):
    """Right in float64, so that values alone find nothing: it overwrites the mask and gives NaN in bfloat16."""
    path = tmp_path / "careless.py"
    path.write_text('''
import torch
import torch.nn.functional as F

def loss(v, t, mask, scale):
    given, mask = mask, mask.clone()
    s = t @ v.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = torch.where(lo == hi, 1.0, (s - lo) / torch.where(lo == hi, 1.0, hi - lo))
    s = torch.where(s >= 1 / v.shape[1], s, 0.0)
    z = scale * F.normalize(s / s.sum(-1, keepdim=True) @ v, dim=-1) @ F.normalize(t, dim=-1).mT
    low = torch.finfo(z.dtype).min
    ce = z.masked_fill(~mask[:, None], low).log_softmax(-1) + z.mT.masked_fill(~mask[:, None], low).log_softmax(-1)
    ce = -torch.where(mask, ce.diagonal(dim1=1, dim2=2), 0.0)
    out = (ce.sum(1) / mask.sum(1).clamp(min=1)).mean() / 2
    given.fill_(False)
    return out / (1 - (z.dtype == torch.bfloat16))
''')
    report = parity.check(str(path))
    found = {"edge.mutates_inputs", "edge.low_precision"}
    assert report.verdict == "eq6" and found <= {x.found.id for x in report.behaviour.findings}
    assert found <= {x["id"] for x in report.to_dict()["behaviour"]}
    assert all(words in " ".join(str(report).split()) for words in ("mask", "bfloat16"))
