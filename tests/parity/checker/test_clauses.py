"""Every sentence that a diagnosis can say: said where it is true, and withheld, or said weaker, in a run where it is false."""

import math
import re
import zlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import test_confirm
import torch

from parity.checker.diagnosis import findings
from parity.checker.diagnosis.again import fresh, under
from parity.checker.diagnosis.asking import Box, Reading
from parity.checker.diagnosis.clauses import TEMPLATES, Door, entropy, same_losses, say
from parity.checker.diagnosis.deviations import Found
from parity.checker.diagnosis.explain import Reader
from parity.checker.diagnosis.findings import Diagnosis, together
from parity.checker.diagnosis.locate import measured
from parity.checker.diagnosis.sizes import Limit
from parity.checker.diagnosis.switches import Variant
from parity.checker.diagnosis.traced import Followed
from parity.checker.diagnosis.variants import evaluate
from parity.checker.probes import Answer

PAPER = Variant()
SOFT = Variant(weights="softmax")


def setting(o):
    return lambda p: (lambda r: Answer({"fine": r.losses["fine"]}, {"fine": r.grads["fine"]}))(evaluate(p, o))


def number(f):
    return lambda p: Answer({"fine": float(f(p))})


def paper(p):
    return evaluate(p, PAPER, grad=False).losses["fine"]


def refuses(where):
    def ask(p):
        return Answer(error=f"ValueError: one is too few{where}") if len(p.v) == 1 else setting(PAPER)(p)

    return ask


def flat_else(p):
    return paper(p) + (0.3 if p.flat else 0.0)


def jumps(p):
    return paper(p) + zlib.crc32(p.v.tobytes()) / 2**32


def cosines(p):
    """Entropy of the paper's number of classes, whatever else."""
    return entropy(p.t.shape[1], math.exp(p.theta))


def with_lengths(p):
    return paper(p) + 0.1 * np.linalg.norm(p.t, axis=-1).mean()


def angles(p):
    v = p.v[0] / np.linalg.norm(p.v[0], axis=-1, keepdims=True)
    off = np.abs(v @ v.T - np.eye(len(v)))
    return paper(p) + (0.2 if ((off > 1e-3) & (off < 0.999)).any() else 0.0)


def apart(p):
    """The paper where each token points where a patch does."""
    v, t = (x[0] / np.linalg.norm(x[0], axis=-1, keepdims=True) for x in (p.v, p.t))
    return paper(p) + (0.2 if (t @ v.T).max(-1).min() < 0.99 else 0.0)


def off_axes(p):
    return paper(p) + (0.2 if (np.sort(np.abs(p.v), -1)[..., -2] > 1e-3).any() else 0.0)


def by_length(p):
    return paper(p) + 0.3 * np.ptp(np.linalg.norm(p.t, axis=-1))


def uneven(p):
    """Another loss where tokens are not equally near their patches."""
    v, t = (x[0] / np.linalg.norm(x[0], axis=-1, keepdims=True) for x in (p.v, p.t))
    return paper(p) + 0.3 * np.ptp((v[:len(t)] * t).sum(-1))


def half_of(p):
    """Counts spare patches as a factor."""
    return paper(p) * p.v.shape[1] / p.t.shape[1]


def minus_parallel(p):
    """The paper where patches are parallel, something else elsewhere."""
    v = p.v[0] / np.linalg.norm(p.v[0], axis=-1, keepdims=True)
    return paper(p) + (0.0 if np.abs(v @ v.T).min() > 0.999 else 0.4)


def below(sigma):
    return setting(Variant(sigma=sigma))


def fading(p):
    """A softmax so sharp that most patches get no gradient that one could see: where that begins hangs on the temperature."""
    x = [torch.tensor(a, requires_grad=True) for a in (p.v, p.t)]
    a = torch.softmax(40 * math.exp(2 * p.theta) * x[1] @ x[0].mT, -1)
    y = ((a @ x[0] - x[1]) ** 2).sum()
    g = torch.autograd.grad(y, x)
    return Answer({"fine": float(y.detach())}, {"fine": dict(zip("vt", (z.numpy() for z in g)))})


def caption_else(p):
    return paper(p) + (0.2 * np.abs(p.v).mean() if len(p.v) == 1 and not p.mask.all() else 0.0)


def caption_factor(p):
    return paper(p) * (1.31 if len(p.v) == 1 and not p.mask.all() else 1.0)


def batch_else(p):
    return paper(p) + (0.2 * np.abs(p.v).mean() if len(p.v) > 1 and p.mask.all() else 0.0)


def batch_factor(p):
    return paper(p) * (1.31 if len(p.v) > 1 and p.mask.all() else 1.0)


def unequal_else(p):
    return paper(p) + (0.2 * np.ptp(p.mask.sum(1)))


def unit_alone(p):
    return paper(p) + 0.3 * np.abs(np.linalg.norm(p.v, axis=-1) - 1).mean()


def weight_of(read, probe, a, b):
    return measured(read, PAPER, probe, a, b)


def trace(stage, where, kind=""):
    return lambda probe: Followed(stage, where, {"similarity": where}, kind=kind)


def taking(other):
    return lambda probe: Followed("logits", "x.py:3 z", {"logits": "x.py:3 z"}, taken=other)


def hardest(p):
    """The largest loss of a sample."""
    return max(paper(replace(p, v=p.v[k:k + 1], t=p.t[k:k + 1], mask=p.mask[k:k + 1])) for k in range(len(p.v)))


def window(p):
    """Only neighbours are negatives; patch l is token l."""
    t = torch.tensor(p.t[0], requires_grad=True)
    z = math.exp(p.theta) * torch.tensor(p.v[0]) @ t.T
    place = torch.arange(len(t))
    z = z.masked_fill((place - place[:, None]).abs() > 1, -math.inf)
    y = -z.log_softmax(1).diagonal().mean()
    return Answer({"fine": float(y.detach())}, {"fine": {"t": torch.autograd.grad(y, t)[0].numpy()[None]}})


def with_total(more):
    return lambda p: Answer({"fine": paper(p), "total": paper(p) + more})


def fewer(one, other):
    return lambda p: Followed("similarity", "x.py:3 s", many=one if p.v.shape[1] < 10 else other)


HAD = {"told": "They grow", "stage": "weights", "cut": ""}
FEWER = {"where": "x.py:3 s", "many": 8, "given": 9}
TAKEN = {"where": "x.py:3 z", "taken": "x.py:7 y", "what": "logits", "tail": "the softmax takes others"}
MADE = {"stage": "minmax", "last": "similarity", "made": "similarities"}
WEIGHT = {"measured": weight_of}
ONE = {"settings": [PAPER]}
# kind -> (a run in which it is true, its facts), (a run in which it is false, its facts)
RUNS = {
    "raises on one": ((refuses(" at x.py:3"), {"error": "ValueError: one at x.py:3"}),
                      (refuses(""), {"error": "ValueError: one"})),
    "never finite": ((number(lambda p: math.nan), {}), (setting(PAPER), {})),
    "always zero": ((number(lambda p: 0.0), {}), (number(lambda p: 0.0 if len(p.v) == 1 else 0.1), {})),
    "threshold": ((below(0.3), {"low": 0.29, "high": 0.31, "many": 64}), (fading, {"low": 0.388, "high": 0.39, "many": 64})),
    "threshold law": ((setting(PAPER), {"law": "1/P", "many": 64, "few": 16, "at": 1 / 36}),
                      (setting(PAPER), {"law": "2/P", "many": 64, "few": 16, "at": 2 / 36})),
    "flat": ((number(flat_else), {"setting": PAPER}), (setting(Variant(flat="zero")), {"setting": PAPER})),
    "two results": ((number(jumps), {}), (setting(PAPER), {})),
    "followed": ((setting(PAPER), MADE | {"where": "x.py:3 s", "followed": trace("minmax", "x.py:3 s")}),
                 (setting(PAPER), MADE | {"where": "bmm()", "followed": trace("minmax", "bmm()", "cosine")})),
    "cosine": ((setting(PAPER), {"where": "x.py:3 s", "followed": trace("minmax", "x.py:3 s", "cosine")}),
               (setting(PAPER), {"where": "x.py:3 s", "followed": trace("minmax", "x.py:3 s")})),
    "patches": ((setting(PAPER), FEWER | {"followed": fewer(8, 8)}), (setting(PAPER), FEWER | {"followed": fewer(8, 0)})),
    "had back": ((setting(PAPER), HAD | {"followed": lambda p: Followed("weights", sure=True)}),
                 (setting(PAPER), HAD | {"followed": lambda p: Followed("weights")})),
    "taken": ((setting(PAPER), TAKEN | {"followed": taking("x.py:7 y")}), (setting(PAPER), TAKEN | {"followed": taking("")})),
    "left out": ((window, {"many": 7, "few": 20}), (setting(PAPER), {"many": 7, "few": 20})),
    "samples apart": ((number(hardest), {}), (setting(Variant(negatives="batch")), {})),
    "neither": ((with_total(0.25), {"alone": 0.25}), (with_total(0.0), {"alone": 0.25})),
    "norm": ((number(off_axes), {"stage": "norm", **ONE}), (setting(PAPER), {"stage": "norm", **ONE})),
    "logits": ((number(angles), {"stage": "logits", **ONE}), (setting(Variant(no_norm="both")), {"stage": "logits", **ONE})),
    "grouping": ((number(apart), {"stage": "grouping", **ONE}), (setting(PAPER), {"stage": "grouping", **ONE})),
    "unsteady": ((setting(PAPER), {"one": 0.5, "two": 0.6, "again": lambda: (0.5, 0.6)}),
                 (setting(PAPER), {"one": 0.5, "two": 0.6, "again": lambda: None})),
    "reduction lengths": ((number(by_length), {"stage": "reduction lengths", **ONE}),
                          (setting(Variant(factor=2.0)), {"stage": "reduction lengths", "settings": [Variant(factor=2.0)]})),
    "reduction": ((number(uneven), {"stage": "reduction", **ONE}),
                  (setting(Variant(factor=2.0)), {"stage": "reduction", "settings": [Variant(factor=2.0)]})),
    "token length": ((number(with_lengths), {}), (setting(PAPER), {})),
    "spare": ((setting(SOFT), {}), (setting(PAPER), {})),
    "spare factor": ((number(half_of), {}), (setting(SOFT), {})),
    "parallel": ((number(minus_parallel), {"tau": False}), (setting(PAPER), {"tau": False})),
    "factor of count": ((number(lambda p: cosines(p) * p.t.shape[1]), {}), (number(cosines), {})),
    "zero pairs": ((number(lambda p: max(0.0, 1 - len(p.t[0]))), {}), (number(cosines), {})),
    "turning": ((number(with_lengths), {}), (setting(PAPER), {})),
    "gap": ((number(lambda p: 2 * entropy(p.t.shape[1], 1.7)), {"gap": 1.7, "factor": 2.0, "scale": 2.7}),
            (number(cosines), {"gap": 1.7, "factor": 2.0, "scale": 2.7})),
    "gap in scale": ((number(lambda p: entropy(p.t.shape[1], 0.6 * math.exp(p.theta))), {"gap": 0.6}),
                     (number(lambda p: entropy(p.t.shape[1], 0.6)), {"gap": 0.6})),
    "two gaps": ((number(lambda p: (entropy(p.t.shape[1], math.exp(p.theta)) + entropy(p.t.shape[1], 0.6)) / 2),
                  {"gap": 0.6, "scale": 2.7}), (number(cosines), {"gap": 0.6, "scale": 2.7})),
    "no gap": ((number(lambda p: p.t.shape[1] ** 3), {}), (number(cosines), {})),
    "unit alone": ((number(unit_alone), ONE), (setting(Variant(no_norm="both")), ONE)),
    "mixtures": ((setting(PAPER), ONE), (setting(SOFT), ONE)),
    "weight": ((setting(PAPER), {"weight": 0.6, **WEIGHT}), (setting(SOFT), {"weight": 0.6, **WEIGHT})),
    "weight and": ((setting(PAPER), {"weight": 0.6, "other": "0.5", "name": "more patches", **WEIGHT}),
                   (setting(SOFT), {"weight": 0.6, "other": "0.5", "name": "more patches", **WEIGHT})),
    "one caption": ((number(caption_else), ONE), (number(caption_factor), ONE)),
    "one caption factor": ((number(caption_factor), ONE), (number(caption_else), ONE)),
    "captions": ((number(batch_else), ONE), (number(batch_factor), ONE)),
    "captions factor": ((number(batch_factor), ONE), (number(batch_else), ONE)),
    "equal lengths": ((number(unequal_else), ONE), (number(lambda p: paper(p) + 0.1 * len(p.v)), ONE)),
    "no gradients": ((number(paper), {}), (setting(PAPER), {})),
}  # fmt: skip


def run(ask, kind, facts):
    box = Box(ask)
    text = say(Reader(box, "fine"), kind, **facts)
    return text, box.door


def test_every_template_has_its_two_runs():
    assert RUNS.keys() | test_confirm.RUNS.keys() | {"survey"} == TEMPLATES.keys()


@pytest.mark.parametrize("kind", RUNS)
def test_said_where_it_is_true(kind):
    text, door = run(*RUNS[kind][0][:1], kind, RUNS[kind][0][1])
    assert text == TEMPLATES[kind].words.format(**RUNS[kind][0][1])
    assert text.endswith(".") and "{" not in text and door.said == [kind]


@pytest.mark.parametrize("kind", RUNS)
def test_withheld_or_weaker_where_it_is_false(kind):
    text, door = run(*RUNS[kind][1][:1], kind, RUNS[kind][1][1])
    assert text == TEMPLATES[kind].weaker.format(**RUNS[kind][1][1]) and not door.said
    assert (door.weaker or door.withheld) == [kind]


@pytest.mark.parametrize("kind", RUNS)
def test_a_box_that_fails_hears_nothing_said_of_it(kind):
    text, door = run(lambda p: Answer(error="time: too slow"), kind, RUNS[kind][0][1])
    assert not door.said or kind in ("followed", "cosine", "taken", "patches", "had back", "no gradients", "unsteady"), text


def test_unknown_kind_is_an_error():
    with pytest.raises(KeyError):
        Door().say("whatever", None)


def test_settings_that_differ_are_told_apart():
    assert same_losses(PAPER, Variant(direction="both")) and not same_losses(PAPER, Variant(reduction="token"))
    assert not same_losses(PAPER, Variant(detach="similarity")) and not same_losses(PAPER, Variant(open_vt="open"))


def test_probes_under_conditions_hold_them():
    for wanted in (("no padding",), ("equal lengths",), ("no padding", "B = 1"), ("unit-norm patches",)):
        assert all(set(wanted) <= p.holds for p in under(wanted))
    assert all(p.mask.any(1).all() for kind in ("padded", "single", "equal", "unpadded") for p in fresh(kind))


def test_a_headline_speaks_in_words_and_the_main_fault_comes_first(monkeypatch):
    """No name of the survey's; what ordinary batches show before what flat rows alone show; a size is said once."""
    monkeypatch.setattr(findings, "say", lambda read, kind, **facts: TEMPLATES[kind].words.format(**facts))
    flat, smooth, detached = Found("minmax.nan_on_flat"), Found("loss.smoothing", 0.1), Found("weights.detached")
    said = {flat: "flat rows are NaN", smooth: "labels are smoothed"}
    part = SimpleNamespace(read=lambda p: Reading(1.0, {"v": np.ones(1), "t": np.ones(1), "theta": np.ones(1)}), explained=True,
                           one_token=False, fixed_temperature=False, name="fine")
    whole = Diagnosis("explained", deviations=(flat, smooth), clauses=said, equals=((flat, detached),))
    told = findings.sentence(whole, "fine", part)
    assert "except that labels are smoothed, and flat rows are NaN" in told, told
    assert "the same as if " in told and not re.search(r"\b[a-z]+\.[a-z_]+\b", told.replace("eq. ", "")), told
    alone = Diagnosis("conditional", ("B = 1", "at most 1 sample in a batch"), limits=(Limit("B", 1, 2, 64, 0.1, 0.1),))
    assert "B = 1" not in findings.sentence(alone, "fine", part)
    blunt = Diagnosis("conditional", ("no flat rows", "at most 8 samples in a batch"), deviations=(flat,), clauses=said,
                      limits=(Limit("B", 8, 9, 12, 0.1, 0.1, sharp=False),))
    assert "where this holds" not in findings.sentence(blunt, "fine", part)  # there are sizes beyond at which it does not
    assert findings.sentence(Diagnosis("eq6"), "fine", part, one_of_two=True).startswith("Your fine-grained loss equals eq. 6")


def test_gradients_that_are_wrong_alike_are_said_once():
    one, other = "is 1/B times what it should be", "is 2 times what it should be"
    clauses = [f"the gradient for patches {one}", "padded tokens compete", f"the gradient for theta {one}",
               f"the gradient for tokens {other}"]
    assert together(clauses) == ["the gradients for patches and theta are 1/B times what they should be",
                                 "padded tokens compete", f"the gradient for tokens {other}"]
