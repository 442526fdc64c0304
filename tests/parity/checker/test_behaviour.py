"""What values miss is seen; what the explanation shows as well is no finding of its own; sound losses give none."""

import math

import numpy as np
import pytest

from parity.checker.calling.caller import Caller
from parity.checker.calling.convention import infer
from parity.checker.calling.target import target_of
from parity.checker.calling.worker import Worker
from parity.checker.diagnosis import behaviour as tests
from parity.checker.diagnosis import variants
from parity.checker.diagnosis.behaviour import behaviour
from parity.checker.diagnosis.deviations import Found
from parity.checker.diagnosis.diagnose import Diagnosis, diagnose
from parity.checker.probes import PROBES, Answer
from parity.checker.verdict import with_modes

TORCH = '''
import torch
import torch.nn.functional as F

def sound(v, t, mask, scale, change=lambda x: x, values=None):
    s = t @ v.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = lo == hi
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s = torch.where(s >= 1 / v.shape[1], s, 0.0)
    a = change(s / s.sum(-1, keepdim=True))
    c = F.normalize(a @ v, dim=-1) if values is None else values(a, v)
    z = scale * c @ F.normalize(t, dim=-1).mT
    low = torch.finfo(z.dtype).min
    ce = z.masked_fill(~mask[:, None], low).log_softmax(-1) + z.mT.masked_fill(~mask[:, None], low).log_softmax(-1)
    ce = -torch.where(mask, ce.diagonal(dim1=1, dim2=2), 0.0)
    return (ce.sum(1) / mask.sum(1).clamp(min=1)).mean() / 2

def writes(v, t, mask, scale):
    v.mul_(1.5)
    return sound(v, t, mask, scale)

def draws(v, t, mask, scale):
    return sound(v, t, mask, scale, change=lambda a: F.dropout(a, 0.2))

def only_a_number(v, t, mask, scale):
    return sound(v, t, mask, scale).item()

def temperature_item(v, t, mask, scale):
    return sound(v, t, mask, float(scale))

def half_breaks(v, t, mask, scale):
    loss = sound(v, t, mask, scale)
    return loss / (1 - (loss.dtype == torch.bfloat16))

def written_out(v, t, mask, scale):
    return sound(v, t, mask, scale, values=lambda a, v: F.normalize((a[..., None] * v[:, None]).sum(2), dim=-1))

def all_against_all(v, t, mask, scale):
    return sound(v, t, mask, scale) + 0 * torch.einsum("bld,ckd->blck", t, t).sum()

def counts_from_the_left(v, t, mask, scale):
    return sound(v, t, torch.arange(t.shape[1]) < mask.sum(1, keepdim=True), scale)

class TrainsOtherwise(torch.nn.Module):
    def forward(self, v, t, mask, scale):
        return sound(v, t, mask, scale, change=lambda a: a.detach() if self.training else a)

class Drops(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.drop, self.norm = torch.nn.Dropout(0.2), torch.nn.BatchNorm1d(16)

    def forward(self, v, t, mask, scale):
        self.norm(v.mean(1))                              # changes what the module holds, and nothing else
        return sound(v, t, mask, scale, change=self.drop)

class Quiet(torch.nn.Module):
    def forward(self, v, t, mask, scale):
        return sound(v, t, mask, scale)

CALLS = [0]

def every_tenth(v, t, mask, scale):
    CALLS[0] += 1
    return sound(v, t, mask, scale) * (1.001 if CALLS[0] % 10 == 0 else 1.0)

def refuses_single(v, t, mask, scale):
    assert v.shape[0] > 1, "a batch, please"
    return sound(v, t, mask, scale)
'''


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    path = tmp_path_factory.mktemp("behaviour") / "in_torch.py"
    path.write_text(TORCH)
    worker = Worker(target_of(f"{path}:sound"))

    def of(name):
        worker.reload(target_of(f"{path}:{name}"))
        return Caller(worker, infer(worker)[0])

    yield of
    worker.close()


def variant(*deviations):
    """A loss with these deviations, as something to ask."""
    def ask(probe):
        result = variants.compute(probe, deviations)
        return Answer(dict(result.losses), {name: dict(g) for name, g in result.grads.items()})

    return ask


def ids(found):
    return [f.id for f, _ in found]


@pytest.mark.parametrize("name, test, wanted, words", [
    ("counts_from_the_left", "padding_place", ["edge.padding_place"], "with padding before the tokens the fine loss is"),
    ("sound", "padding_place", [], ""), ("Quiet", "train_mode", [], ""), ("sound", "train_mode", [], ""),
    ("TrainsOtherwise", "train_mode", ["edge.train_mode"], "in train mode the gradient of the fine loss is"),
    ("Drops", "train_mode", ["edge.train_mode"], "changes from call to call"),
])
def test_places_of_padding_and_modes(ask, name, test, wanted, words):
    caller = ask(name)
    before = caller.call(PROBES["padded"]).losses
    found = list(getattr(tests, test)(caller))
    assert ids(found) == wanted and all(words in said for _, said in found)
    assert caller.call(PROBES["padded"]).losses == before  # it is in eval mode again, with what it held


def test_a_place_of_padding_is_said_only_if_another_batch_shows_it(ask, monkeypatch):
    caller = ask("counts_from_the_left")
    assert "edge.padding_place" in [f.found.id for f in behaviour(caller, Diagnosis("eq6")).findings]
    real = tests.padding_place
    monkeypatch.setattr(tests, "padding_place", lambda ask, name="padded": real(ask, name) if name == "padded" else iter(()))
    assert "edge.padding_place" not in [f.found.id for f in behaviour(caller, Diagnosis("eq6")).findings]


def test_what_changes_from_call_to_call_is_not_explained(ask):
    found = diagnose(ask("every_tenth"))
    assert found.verdict == "unexplained" and "it holds a state, or draws numbers" in found.note
    assert "it holds a state" not in diagnose(ask("sound")).note


def test_a_module_that_is_the_papers_in_eval_mode_alone_is_that_under_a_condition():
    seen = tests.Behaviour((tests.Finding(Found("edge.train_mode"), "in train mode the loss is 5 % off; all else is"),))
    one = with_modes(Diagnosis("eq6", note="Your loss equals eq. 6."), seen)
    assert one.verdict == "conditional" and one.conditions == ("eval mode",) and one.base == "eq6"
    assert one.note == "Your loss equals eq. 6. That is so in eval mode; in train mode the loss is 5 % off."
    left = tests.Behaviour((tests.Finding(Found("edge.padding_place", None, "x"), "with padding x it is 5 % off"),))
    other = with_modes(Diagnosis("eq6", note="Equal."), left)
    assert other.verdict == "eq6" and other.note == "Equal. Padding is taken to come last: with padding x it is 5 % off."
    assert with_modes(Diagnosis("unexplained", note="No."), seen).note == "No."


def test_a_sound_loss_has_no_findings(ask):
    seen = behaviour(ask("sound"), Diagnosis("eq6"))
    assert seen.findings == () and set(seen.half) == {"float16", "bfloat16"} and max(seen.half.values()) < 0.05
    assert not any("memory" in note for note in seen.notes)


@pytest.mark.parametrize("test", ["no_gradient", "padding_leak", "zero_padding", "nan_gradient", "all_padding", "order",
                                  "batch_split"])
def test_the_paper_passes_every_test(test):
    assert list(getattr(tests, test)(variant())) == []


@pytest.mark.parametrize("test, id_, deviations", [
    ("padding_leak", "edge.padding_leak", [Found("logits.padding_not_masked")]),
    ("padding_leak", "edge.padding_leak", [Found("reduction.mean_all")]),
    ("batch_split", "edge.batch_split", [Found("reduction.token")]),
    ("batch_split", "edge.batch_split", [Found("logits.batch_negatives")]),
    ("zero_padding", "edge.zero_padding", [Found("minmax.nan_on_flat")]),
])
def test_what_a_deviation_shows_is_seen_and_explained_by_it(test, id_, deviations):
    faulty = variant(*deviations)
    assert ids(getattr(tests, test)(faulty)) == [id_]
    diagnosis = Diagnosis("explained", deviations=(Found("threshold.constant", 0.3), *deviations))
    assert tests.causes(getattr(tests, test), id_, diagnosis) == tuple(d.id for d in deviations)


def changed(change):
    """The paper's answers, changed after the fact."""
    sound = variant()

    def ask(probe):
        answer = sound(probe)
        return Answer(*change(probe, dict(answer.losses), {name: dict(g) for name, g in answer.grads.items()}))

    return ask


def leak_in_the_gradient(probe, losses, grads):
    grads["fine"]["v"] = grads["fine"]["v"] * (1 + 1e-3 * np.sin(probe.t[~probe.mask].sum()))
    return losses, grads


def late_nan(probe, losses, grads):
    if probe.name == "flat":
        grads["fine"]["t"] = grads["fine"]["t"] * math.nan
    return losses, grads


def first_counts_twice(probe, losses, grads):
    return {name: x + 0.1 * probe.t[0, 0, 0] for name, x in losses.items()}, grads


def poisoned_by_empty(probe, losses, grads):
    return {name: x if probe.mask.any(1).all() else math.nan for name, x in losses.items()}, grads


def no_tokens(probe, losses, grads):
    grads["fine"]["t"] = 0 * grads["fine"]["t"]
    return losses, grads


@pytest.mark.parametrize("test, change, id_, words", [
    ("padding_leak", leak_in_the_gradient, "edge.padding_leak", "gradient for v"),
    ("nan_gradient", late_nan, "edge.nan_gradient", "every patch is alike"),
    ("order", first_counts_twice, "edge.order_dependent", "samples in another order"),
    ("batch_split", first_counts_twice, "edge.batch_split", "two halves"),
    ("all_padding", poisoned_by_empty, "edge.all_padding", "not finite"),
    ("no_gradient", no_tokens, "edge.no_gradient", "exactly zero"),
])
def test_faults_that_no_deviation_names_are_seen(test, change, id_, words):
    found = list(getattr(tests, test)(changed(change)))
    assert found and {f.id for f, _ in found} == {id_} and any(words in evidence for _, evidence in found)


def test_leaks_are_looked_for_with_other_directions():
    def normalised(probe, losses, grads):                 # a factor on a padded token would change nothing here
        unit = probe.t / np.linalg.norm(probe.t, axis=-1, keepdims=True)
        return {name: x + unit[~probe.mask].sum() for name, x in losses.items()}, grads

    assert ids(tests.padding_leak(changed(normalised))) == ["edge.padding_leak", "edge.padding_leak"]


@pytest.mark.parametrize("name, id_, words", [
    ("writes", "edge.mutates_inputs", "v held other numbers"), ("draws", "edge.not_deterministic", "the same call gave"),
    ("only_a_number", "edge.no_gradient", "a plain number"), ("half_breaks", "edge.low_precision", "bfloat16"),
])
def test_side_effects_and_precision(ask, name, id_, words):
    seen = behaviour(ask(name), Diagnosis("unexplained"))
    assert [(x.found.id, words in x.evidence) for x in seen.findings if x.found.id == id_] == [(id_, True)]


def test_a_temperature_that_is_taken_out_of_the_graph_has_no_gradient(ask):
    found = list(tests.no_gradient(ask("temperature_item")))
    assert [(f.id, f.value) for f, _ in found] == [("edge.no_gradient", "theta")]


@pytest.mark.parametrize("name, words", [("written_out", "peak memory grows like D^"),
                                         ("all_against_all", "peak memory grows like B^")])
def test_memory_beyond_the_law_is_noted(ask, name, words):
    seen = behaviour(ask(name), Diagnosis("eq6"))
    assert any(words in note for note in seen.notes) and seen.findings == ()


def test_batches_that_it_refuses_are_noted(ask):
    assert any("a batch, please" in note for note in behaviour(ask("refuses_single"), Diagnosis("eq6")).notes) or \
        any("raises" in note for note in tests.refusals(asked_single(ask("refuses_single"))))


def asked_single(caller):
    from parity.checker.probes import PROBES

    for name in ("padded", "single"):
        caller(PROBES[name])
    return caller


def test_what_the_diagnosis_found_is_not_found_again(ask):
    caller = ask("only_a_number")
    seen = behaviour(caller, Diagnosis("explained", deviations=(Found("edge.no_gradient", "anything"),)))
    assert "edge.no_gradient" not in [x.found.id for x in seen.findings]
