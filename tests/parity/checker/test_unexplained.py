"""Faults that no deviation describes: located at their stage, called unexplained."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from boxes import divide, entropy, plain, wrapped

from parity.checker.diagnosis.asking import Box
from parity.checker.diagnosis.diagnose import Diagnosis, diagnose, nearly
from parity.checker.diagnosis.explain import Explanation, Reader
from parity.checker.diagnosis.placing import differing, place_of
from parity.checker.diagnosis.switches import Variant
from parity.checker.diagnosis.traced import follow
from parity.checker.diagnosis.variants import evaluate
from parity.checker.page.sheet import Report
from parity.checker.probes import PROBES, Answer


def column_range(s):
    low = s.amin((1, 2), keepdim=True)
    return (s - low) / (s.amax((1, 2), keepdim=True) - low)


def top(h, k=3):
    return h * (h >= h.topk(min(k, h.shape[2]), 2).values[..., -1:])


def hinge(z):
    """Of logits: 1/tau is 2.7 where cosines are 0 and 1."""
    gap = torch.relu(2 + z - z.diagonal(dim1=1, dim2=2)[..., None])
    return torch.where(torch.eye(z.shape[1], dtype=torch.bool), 0.0, gap).sum(2)


OUTSIDE = [
    ("similarity", {"like": lambda t, v: (t @ v.mT) ** 3}),
    ("similarity", {"like": lambda t, v: torch.relu(t @ v.mT)}),
    ("similarity", {"like": lambda t, v: -torch.cdist(t, v)}),
    ("minmax", {"stretch": column_range}),
    ("minmax", {"stretch": lambda s: s / s.amax(2, keepdim=True)}),
    ("minmax", {"stretch": torch.sigmoid}),
    ("threshold", {"cut": lambda h: torch.where(h >= 2 / h.shape[2], h, 0.0)}),
    ("threshold", {"cut": top}),
    ("weights", {"weigh": lambda h: divide(h**3)}),
    ("weights", {"weigh": lambda h: divide(torch.where(h > 0, h, 1.0).sqrt() * (h > 0))}),
    ("grouping", {"average": lambda a, v, t: a @ v + v.mean(1, keepdim=True)}),
    ("norm", {"c_unit": lambda c: F.normalize(c, p=1, dim=2), "t_unit": lambda t: F.normalize(t, p=1, dim=2)}),
    ("norm", {"t_unit": lambda t: F.layer_norm(t, t.shape[-1:]) / math.sqrt(t.shape[-1])}),
    ("norm", {"c_unit": lambda c: c / (c.norm(dim=2, keepdim=True) + 1)}),
    ("logits", {"logits": lambda c, u, theta: theta.exp() * (c @ u.mT) ** 2}),
    ("logits", {"logits": lambda c, u, theta: theta.exp() * torch.relu(c @ u.mT)}),
    ("logits", {"logits": lambda c, u, theta: (2 * theta).exp() * (c @ u.mT)}),
    ("logits", {"logits": lambda c, u, theta: 20 * torch.tanh(theta.exp() * (c @ u.mT) / 20)}),
    ("logits", {"ce": lambda vt, tv: entropy(vt, tv.nan_to_num(neginf=-1e9) * 0.3)}),
    ("loss", {"ce": lambda vt, tv: entropy(vt, tv) ** 2}),
    ("loss", {"ce": lambda vt, tv: hinge(vt) + hinge(tv)}),
    ("loss", {"ce": lambda vt, tv: entropy(vt, tv).exp() - 1}),
    ("reduction", {"mean": lambda each, mask: (torch.where(mask, each, 0.0).sum(1) / mask.sum(1).clamp(min=1).sqrt()).mean()}),
    ("reduction", {"mean": lambda each, mask: torch.where(mask, each, 0.0).sum()}),
]  # fmt: skip
QUICK = (8, 19)                                           # of the quick ones, one a stage


@pytest.mark.parametrize("number", [
    pytest.param(k, id=f"{stage}-{k}", marks=() if k in QUICK else pytest.mark.slow) for k, (stage, *_) in enumerate(OUTSIDE)])
def test_what_is_outside_the_table_is_located_and_called_unexplained(number):
    stage, how = OUTSIDE[number]
    d = diagnose(wrapped(plain, **how))
    assert d.verdict == "unexplained" and not d.deviations and d.reproduced_to is None, d.note
    assert d.stage == stage, d.note
    assert d.evidence in PROBES and "no known deviation explains it" in d.note
    assert d.calls < 240                                  # sizes of real use among them


@pytest.mark.slow
def test_an_unknown_fault_beside_known_ones_is_located():
    cosine = {"like": lambda t, v: t @ F.normalize(v, dim=2).mT}
    d = diagnose(wrapped(plain, **cosine, ce=lambda vt, tv: entropy(vt, tv) ** 2, fill=0.0))
    assert d.verdict == "unexplained" and d.stage == "loss" and not d.deviations
    d = diagnose(wrapped(plain, logits=lambda c, u, theta: c @ u.mT / 0.07, weigh=lambda h: divide(h**2)))
    assert d.verdict == "unexplained" and d.stage == "weights" and not d.deviations


def test_a_fault_of_padding_that_is_outside():
    """Only the first half of each caption's real tokens may be negatives: without padding it shows as well."""
    def logits(c, u, theta):
        z = theta.exp() * c @ u.mT
        return z + 0.1 * torch.roll(z, 1, 0)              # something of another sample's logits

    d = diagnose(wrapped(plain, logits=logits))
    assert d.verdict == "unexplained" and d.stage == "logits", d.note


def test_samples_that_do_not_compete_meet_in_their_losses():
    def hardest(each, mask):
        loss = torch.where(mask, each, 0.0).sum(1) / mask.sum(1).clamp(min=1)
        return (torch.softmax(loss.detach(), 0) * loss).sum()

    d = diagnose(wrapped(plain, mean=hardest))
    assert d.stage == "reduction" and "how the samples' losses are put together" in d.note, d.note


def in_float32(each, mask):
    """The mean over tokens, its weights divided in float32."""
    share = (mask.float() / mask.float().sum(1, keepdim=True).clamp(min=1)).double()
    return (share * torch.where(mask, each, 0.0)).sum() / len(mask)


@pytest.mark.parametrize("how, near", [({"mean": in_float32}, True), ({"weigh": lambda h: divide(h**3)}, False)])
def test_rounding_on_the_way_is_told_from_another_loss(how, near):
    read = Reader(Box(wrapped(plain, **how)), "fine")
    assert nearly(SimpleNamespace(name="fine", read=read, how=Explanation())) == near


@pytest.mark.slow
def test_a_number_rounded_to_float32_hides_nothing():
    """A mask divided in float32, and padded keys that compete."""
    d = diagnose(wrapped(plain, mean=in_float32, fill=0.0))
    assert [x.id for x in d.deviations if x.id.startswith("logits")] == ["logits.padding_filled_zero"], d.note
    assert "holds to rounding of float32" in d.note and d.rounding == (1e-6, 1e-5)
    assert "float32" not in diagnose(wrapped(plain, fill=0.0)).note


@pytest.mark.slow
def test_noise_is_not_explained():
    rng = np.random.default_rng(0)

    def ask(probe):
        r = evaluate(probe, Variant())
        return Answer({"fine": r.losses["fine"] * (1 + 1e-3 * rng.standard_normal())}, {})

    d = diagnose(ask)
    assert d.verdict == "unexplained" and "Two calls" in d.note


def test_watched_arrays_name_what_is_harmless_and_where_it_goes_wrong():
    probe = PROBES["single"]
    v, t = probe.v[0], probe.t[0]

    def norm(x):
        return np.linalg.norm(x, axis=1, keepdims=True)

    def records(scale=1.0, power=1, length=1.0):
        s = scale * (t / length) @ v.T
        h = (s - s.min(1, keepdims=True)) / np.ptp(s, axis=1, keepdims=True)
        h = np.where(h >= 1 / len(v), h, 0)
        a = h**power / (h**power).sum(1, keepdims=True)
        c = a @ v
        z = math.exp(probe.theta) * (c / norm(c)) @ (t / norm(t)).T
        return [("f.py:1 s", s[None]), ("f.py:2 h", h[None]), ("f.py:3 a", a.T), ("f.py:4 c", c), ("f.py:5 z", z)]

    assert set(follow(records(), probe).seen) == {"similarity", "minmax", "threshold", "weights", "grouping", "logits", "norm"}
    assert [x.id for x in follow(records(length=norm(t)), probe).harmless] == ["similarity.tokens_normalised"]
    assert [x.id for x in follow(records(scale=math.exp(probe.theta)), probe).harmless] == ["similarity.scaled"]
    wrong = follow(records(power=2), probe)
    assert wrong.stage == "weights" and wrong.where == "f.py:2 h"
    assert follow([("f.py:1 x", np.ones((3, 3)))], probe) is None


def test_watching_is_used_where_the_box_allows_it():
    def ask(probe, trace=False):
        r = evaluate(probe, Variant(token_norm=True))
        return Answer(r.losses, r.grads, list(r.stages.items()) if trace else None)

    d = diagnose(ask)
    assert d.verdict == "eq6" and [x.id for x in d.harmless] == ["similarity.tokens_normalised"]


def test_what_is_inside_a_line_leaves_stages_open():
    """Of variables alone the first array that is missing may be any step of a line; the groups say which."""
    def place(groups):
        def ask(probe, trace=False):
            s = probe.t @ np.swapaxes(probe.v, 1, 2)
            h = s - s.min(-1, keepdims=True)
            h = np.where(h >= h.max(-1, keepdims=True) / h.shape[-1], h, 0) ** 3
            seen = [("f.py:1 s", s), *[("f.py:2 c", h @ probe.v)] * groups]
            return Answer({"fine": 1.0}, {}, seen if trace else None)

        read = Reader(Box(ask), "fine")
        return place_of(read.box, SimpleNamespace(name="fine", read=read, how=Explanation()), [])

    seen = place(False)
    assert (seen.stage, seen.open) == ("minmax", ("threshold", "weights", "grouping"))
    seen = place(True)
    assert (seen.stage, seen.open) == ("weights", ())
    report = Report("x", Diagnosis("unexplained", stage="minmax", stage_open=("threshold", "weights")))
    assert report.summary.endswith("first at minmax or threshold or weights")
    assert report.to_dict()["stage_open"] == ["threshold", "weights"]


@pytest.mark.parametrize("name", ["single", "single_again", "unit_single"])
def test_the_sample_that_shows_it_is_watched(name):
    def ask(probe):
        return Answer({"fine": evaluate(probe, Variant(), grad=False).losses["fine"] + 0.1 * (probe.name == name)})

    assert differing(Reader(Box(ask), "fine")).name == name
