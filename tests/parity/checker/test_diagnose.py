"""The engine, asked about black boxes: functions that share no code with it, its variants one by one and in combinations."""

import functools
import itertools
import math
import random
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from boxes import (
    box,
    divide,
    entropy,
    indistinguishable,
    is_equal,
    over_batch,
    plain,
    raw_range,
    said,
    same_side,
    soft_unit,
    wrapped,
)

from parity.checker.diagnosis import diagnose as engine
from parity.checker.diagnosis.asking import Box, gradient_off, simplest
from parity.checker.diagnosis.deviations import DEVIATIONS, Found
from parity.checker.diagnosis.matching import cost
from parity.checker.diagnosis.switches import WAYS, Variant, found_in, variant_of
from parity.checker.diagnosis.variants import evaluate
from parity.checker.probes import HELD_OUT, PROBES, Answer

diagnose = functools.partial(engine.diagnose, edges=True)  # ties are told apart here

INDEPENDENT = [                                           # keywords of plain, ids that must come out
    ({}, [], "eq6"),
    ({"mean": lambda each, mask: each[mask].mean() if mask.any() else each.sum() * 0}, ["reduction.token"], "listing1"),
    ({"like": lambda t, v: F.cosine_similarity(t[:, :, None], v[:, None], dim=3)}, ["similarity.cosine"], "conditional"),
    ({"like": lambda t, v: (t @ v.mT).detach()}, ["similarity.detached"], "explained"),
    ({"stretch": raw_range, "weigh": divide}, ["minmax.nan_on_flat"], "conditional"),
    ({"stretch": raw_range}, ["edge.nan_gradient(flat)"], "conditional"),  # NaN >= sigma is false: the loss never sees it
    ({"stretch": functools.partial(raw_range, eps=1e-8), "weigh": functools.partial(divide, eps=1e-8)},
     ["minmax.epsilon(1e-08)"], "conditional"),
    ({"stretch": lambda s: s}, ["minmax.missing"], "explained"),
    ({"cut": lambda h: h}, ["threshold.absent"], "explained"),
    ({"cut": lambda h: F.threshold(h, 0.25, 0.0)}, ["threshold.constant(0.25)", "threshold.strict"], "explained"),
    ({"cut": lambda h: h * (h > 1 / h.shape[2])}, ["threshold.strict"], "explained"),
    ({"weigh": lambda h: divide(h).detach()}, ["weights.detached"], "explained"),
    ({"stretch": lambda s: s, "cut": lambda s: s, "weigh": lambda s: s.softmax(2)}, ["weights.softmax"], "explained"),
    ({"average": lambda a, v, t: a @ F.normalize(v, dim=2)}, ["grouping.normalised_patches"], "conditional"),
    ({"c_unit": lambda c: c, "t_unit": lambda t: t}, ["norm.missing"], "explained"),
    ({"fill": 0.0}, ["logits.padding_filled_zero"], "conditional"),
    ({"fill": 1e-9}, ["logits.padding_filled_zero"], "conditional"),
    ({"logits": lambda c, u, theta: c @ u.mT / 0.07}, ["logits.temperature_constant(0.07)"], "explained"),
    ({"ce": same_side}, ["loss.one_direction(vt)"], "explained"),
    ({"ce": lambda vt, tv: 2 * entropy(vt, tv)}, ["loss.factor(2)"], "explained"),
    ({"mean": lambda each, mask: torch.where(mask, each, 0.0).mean()}, ["reduction.masked_over_all"], "conditional"),
    ({"mean": lambda each, mask: (each * mask).mean()}, ["logits.nan_all_masked_rows", "reduction.masked_over_all"],
     "conditional"),
    ({"fill": -1e4, "mean": lambda each, mask: each.mean()}, ["reduction.mean_all(-10000)"], "conditional"),
    ({"c_unit": soft_unit, "t_unit": soft_unit}, [], "eq6"),
    ({"ce": lambda vt, tv: -((vt.softmax(2) + 1e-8) * (tv.softmax(2) + 1e-8)).diagonal(dim1=1, dim2=2).log() / 2}, [], "eq6"),
]  # fmt: skip


@pytest.mark.parametrize("number", [
    pytest.param(k, id="-".join([str(k), *INDEPENDENT[k][1]]), marks=pytest.mark.slow if k % 3 else ())
    for k in range(len(INDEPENDENT))])
def test_functions_that_share_no_code_are_explained(number):
    how, wanted, verdict = INDEPENDENT[number]
    d = diagnose(wrapped(plain, **how))
    assert d.verdict == verdict, d.note
    assert is_equal(wanted, d), d.note
    assert d.reproduced_to < 1e-7


def test_negatives_of_the_batch_in_other_code():
    d = diagnose(wrapped(over_batch))
    assert {x.id for x in d.deviations} == {"logits.batch_negatives", "reduction.token", "minmax.nan_on_flat"}, d.note


# ------------------------------------------------------------------------------------------------ every id, alone


VALUES = {
    "threshold.constant": 0.3, "logits.temperature_constant": 0.07, "loss.factor": 2.0, "loss.one_direction": "tv",
    "global.temperature_constant": 0.1, "global.one_direction": "vt", "global.factor": 0.5,
}
POOLS = ("global.pools_normalised", "global.pools_padding", "global.uses_cls")
ALONE = [Found(id_, VALUES.get(id_)) for id_ in (*WAYS, *VALUES, *POOLS)]


@pytest.mark.parametrize("planted", [
    pytest.param(d, id=d.id, marks=pytest.mark.slow if k % 3 else ()) for k, d in enumerate(ALONE)])
def test_each_alone_is_found(planted):
    fine, pairs = variant_of([planted])
    pairs = pairs if planted.id.startswith("global.") else None
    d = diagnose(box(None if pairs else fine, pairs))
    if DEVIATIONS[planted.id].harmless:
        assert d.verdict == "eq6" and not d.deviations
        return
    assert is_equal([str(x) for x in found_in(fine, pairs)], d), d.note
    assert d.verdict == ("listing1" if planted.id == "reduction.token" else d.verdict) and d.verdict != "unexplained"
    if d.verdict == "conditional":
        assert d.conditions and set(d.conditions) <= set(DEVIATIONS[planted.id].hidden_by) | {"no padding", "no flat rows"}
    if planted.id != "reduction.token":
        assert d.stage == DEVIATIONS[planted.id].stage or is_equal([str(planted)], d)
    assert d.calls < 240 and d.note.startswith("Your ")


def test_effect_of_each_is_measured():
    open_ = Variant(open_vt="open", open_tv="open")
    d = diagnose(box(replace(open_, sigma=0.3)))
    by_id = {e.id: e for e in d.effects}
    alone, paper = (evaluate(PROBES["padded"], Variant(sigma=s)).losses["fine"] for s in (0.3, "keys"))
    assert by_id["threshold.constant"].loss == pytest.approx(abs(alone - paper) / max(alone, paper))
    assert by_id["logits.padding_not_masked"].loss > 0.1 and by_id["logits.padding_not_masked"].gradient > 0.1


# ------------------------------------------------------------------------------------------------ combinations


POOL = {
    "similarity": [("similarity.cosine",), ("similarity.detached",), ("similarity.patches_group",),
                   ("similarity.patches_group", None, "padded tokens compete")],
    "minmax": [("minmax.nan_on_flat",), ("minmax.missing",), ("minmax.epsilon",)],
    "threshold": [("threshold.absent",), ("threshold.constant", 0.3), ("threshold.constant", 1 / 196),
                  ("threshold.constant", 0.05), ("threshold.strict",), ("threshold.on_weights",)],
    "weights": [("weights.softmax",), ("weights.softmax", None, "of s/tau"), ("weights.softmax_minmax", "s_hat"),
                ("weights.softmax_minmax", "s_til"), ("weights.raw", "s"), ("weights.raw", "normalised")],
    "grouping": [("grouping.normalised_patches",)],
    "norm": [("norm.missing",), ("norm.missing_c",), ("norm.missing_t",)],
    "mask": [("logits.padding_not_masked",), ("logits.padding_not_masked", None, "when tokens pick groups"),
             ("logits.padding_filled_zero",), ("logits.nan_all_masked_rows",)],
    "negatives": [("logits.batch_negatives",), ("logits.batch_negatives", None, "those at the same place")],
    "temperature": [("logits.temperature_constant", 0.07), ("logits.temperature_constant", 0.2)],
    "loss": [("loss.one_direction", "vt"), ("loss.one_direction", "tv"), ("loss.factor", 2.0), ("loss.factor", 0.25)],
    "reduction": [("reduction.token",), ("reduction.mean_all",), ("reduction.masked_over_all",)],
    "edge": [("edge.zero_padding", None, "gradient"), ("edge.all_padding", "poison")],
}  # fmt: skip
CLASHES = [                                               # what one of them does leaves the other nothing to do
    ("weights.softmax", "minmax"), ("weights.softmax", "threshold"), ("weights.raw", "minmax"), ("weights.raw", "threshold"),
    ("weights.softmax_minmax", "threshold"), ("weights.softmax_minmax", "minmax"), ("minmax.missing", "threshold.absent"),
    ("minmax.missing", "threshold.on_weights"), ("threshold.strict", "minmax.epsilon"), ("threshold.strict", "minmax.missing"),
    ("logits.nan_all_masked_rows", "edge"), ("logits.nan_all_masked_rows", "reduction.mean"),
    ("edge.zero_padding", "norm.missing"), ("edge.zero_padding", "minmax.nan"), ("edge", "reduction"),
    ("loss.one_direction", "logits.padding_not_masked when"),
    *(("similarity.patches_group", x) for x in ("reduction", "edge", "threshold.strict", "minmax", "logits.p", "logits.n")),
    ("similarity.patches_group", "logits.b"),
]  # fmt: skip


def combination(seed):
    """Two to four deviations that can stand side by side."""
    rng = random.Random(seed)
    while True:
        chosen = [Found(*rng.choice(POOL[slot])) for slot in rng.sample(list(POOL), rng.choice([2, 3, 4]))]
        texts = [f"{d.id} {d.way}" for d in chosen]
        if any(x.startswith(a) and y.startswith(b) for a, b in CLASHES for x, y in itertools.permutations(texts, 2)):
            continue
        fine, _ = variant_of(chosen)
        if {d.id for d in found_in(fine)} == {d.id for d in chosen}:
            return fine


@pytest.mark.parametrize("seeds", [range(4), pytest.param(range(4, 60), marks=pytest.mark.slow)], ids=["4", "56 more"])
def test_combinations_are_recovered(seeds):
    """Sixty of them, exactly or as a set that no fresh probe tells apart; the share is printed."""
    exact, same, wrong, slowest = 0, 0, [], 0.0
    for seed in seeds:
        planted = combination(seed)
        wanted = [str(x) for x in found_in(planted)]
        start = time.perf_counter()
        d = diagnose(box(planted))
        slowest = max(slowest, time.perf_counter() - start)
        if d.verdict in ("explained", "conditional", "listing1") and said(d) == sorted(wanted):
            exact += 1
        elif d.deviations and indistinguishable(planted, d):
            same += 1
        else:
            wrong.append(f"{seed}: {wanted} taken for {d.verdict} {said(d)}")
        assert d.calls < 200
    print(f"{exact} exact, {same} the same thing, {len(wrong)} wrong of {len(seeds)}; slowest {slowest:.1f} s")
    assert len(wrong) <= 1 and exact >= 0.95 * len(seeds), "\n".join(wrong)


# ------------------------------------------------------------------------------------------------ what is given, and how


def test_two_rare_conditions_are_less_than_no_padding():
    """Zeros at padding make its gradient NaN, and so does an empty caption its value: padding as such does nothing."""
    def by_length(t):
        return t / t.norm(dim=2, keepdim=True)

    def mean(each, mask):
        return (torch.where(mask, each, 0.0).sum(1) / mask.sum(1)).mean()

    d = diagnose(wrapped(plain, t_unit=by_length, mean=mean))
    assert d.conditions == ("no caption of padding alone", "no zero embeddings at padding"), d.note


def test_what_cannot_run_is_said():
    d = diagnose(lambda probe: Answer(error="TypeError: too many arguments"))
    assert d.verdict == "cannot_run" and d.error == "TypeError: too many arguments" and d.calls == 1


def test_a_box_that_fails_on_some_probes_is_judged_by_the_others():
    def ask(probe):
        if not probe.mask.any(1).all():
            return Answer(error="ZeroDivisionError: float division by zero")
        r = evaluate(probe, Variant())
        return Answer(r.losses, r.grads)

    d = diagnose(ask)
    assert d.verdict == "conditional" and d.conditions == ("no caption of padding alone",)
    assert said(d) == ["edge.all_padding(raises)"]


@pytest.mark.slow
def test_a_box_that_takes_no_batch_of_one_is_judged_by_the_others():
    def ask(probe, fine):
        if len(probe.v) == 1:
            return Answer(error="IndexError: too many indices")
        r = evaluate(probe, fine)
        return Answer(r.losses, r.grads)

    d = diagnose(functools.partial(ask, fine=Variant()))
    assert d.verdict == "conditional" and d.conditions == ("at least 2 samples in a batch",) and "raises IndexError" in d.note
    d = diagnose(functools.partial(ask, fine=Variant(cosine=True, negatives="batch", sigma="none")))
    assert said(d) == ["logits.batch_negatives", "similarity.cosine", "threshold.absent"]


def test_what_only_padding_shows_is_conditional_and_still_unexplained():
    d = diagnose(wrapped(plain, fill=-2.0))
    assert d.verdict == "conditional" and d.conditions == ("no padding",) and not d.deviations
    assert d.stage == "logits" and "no known deviation explains it" in d.note


# ------------------------------------------------------------------------------------------------ small parts


@pytest.mark.parametrize("x", [0.3, 0.07, 1e-8, 1 / 196, 1 / 14, 2.0, 0.0051, 1e-6, 0.25])
def test_simplest_number_in_an_interval(x):
    assert simplest(x * (1 - 2e-7), x * (1 + 3e-7)) == pytest.approx(x, rel=1e-12)


def test_gradients_are_compared_by_their_own_size():
    a = {"v": np.array([1.0, 2.0]), "t": np.array([1e-3, 0.0])}
    assert gradient_off(a, a) == 0 and gradient_off({}, a) is None
    assert gradient_off({"v": a["v"] * 1.01, "t": a["t"]}, a) == pytest.approx(0.01)
    assert gradient_off({"v": a["v"]}, a) == 0                # what was not given is not compared
    assert gradient_off({"v": a["v"], "t": 0 * a["t"]}, a) == pytest.approx(0.5)  # a zero is
    assert gradient_off({"v": np.array([np.nan, 1]), "t": a["t"]}, a) == math.inf


def test_each_probe_is_asked_once():
    seen = []

    def ask(probe):
        seen.append(probe.name)
        r = evaluate(probe, Variant())
        return Answer(r.losses, r.grads)

    d = diagnose(ask)
    assert len(seen) == len(set(seen)) == d.calls and set(HELD_OUT) <= set(seen)
    assert d.calls < 70                                   # six of them are fresh batches, for the headline


def test_the_smallest_set_is_named_first():
    few, more = Variant(weights="raw_sum"), Variant(minmax=False, sigma="none")
    for probe in (PROBES["padded"], PROBES["single"]):    # the same thing, called by one name or by two
        assert evaluate(probe, few).losses["fine"] == pytest.approx(evaluate(probe, more).losses["fine"], rel=1e-12)
    assert cost(found_in(few)) < cost(found_in(more))
    assert said(diagnose(box(more))) == ["weights.raw(normalised)"]
    assert Box(lambda p: Answer()).calls == 0
