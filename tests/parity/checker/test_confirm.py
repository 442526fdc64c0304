"""Lines of the survey and the headline around them: said where fresh batches show them, else withheld or said weaker."""

from dataclasses import replace

import numpy as np
import pytest

from parity.checker.diagnosis import confirm
from parity.checker.diagnosis.asking import Box
from parity.checker.diagnosis.clauses import TEMPLATES, say
from parity.checker.diagnosis.deviations import DEVIATIONS, Found, words
from parity.checker.diagnosis.explain import Explanation, Reader
from parity.checker.diagnosis.gradients import Slope, Wrong
from parity.checker.diagnosis.sizes import Limit
from parity.checker.diagnosis.switches import GlobalVariant, Variant, variant_of
from parity.checker.diagnosis.totals import ONE_TOKEN, Part
from parity.checker.diagnosis.variants import evaluate
from parity.checker.probes import Answer

PAPER, OTHER = Variant(), Variant(sigma=0.3)
TOL = (1e-9, 1e-7)


def box(fine=PAPER, pairs=None, change=lambda p, loss, grads: (loss, grads)):
    """Answers as a setting gives them, changed after the fact."""
    def ask(p):
        r = evaluate(p, None if pairs else fine, pairs)
        (name, loss), = r.losses.items()
        loss, grads = change(p, loss, r.grads[name])
        return Answer({name: loss}, {name: grads} if grads else {})

    return ask


def part_of(ask, fine=PAPER, pairs=None, **how):
    read = Reader(Box(ask), "global" if pairs else "fine")
    return Part(read.which, read, Explanation(None if pairs else fine, pairs, "all", **how))


def times(name, k, where=lambda p: True):
    def change(p, loss, grads):
        return loss, grads | {name: grads[name] * (k if where(p) else 1)}

    return change


def padding_counts(p, loss, grads):
    return loss, grads | {"t": grads["t"] + 0.1 * ~p.mask[..., None]}


def flat_counts(p, loss, grads):
    return loss, grads | {"t": grads["t"] + 0.1 * p.flat}


def no_numbers(p, loss, grads):
    return loss, {k: np.full_like(g, np.nan) for k, g in grads.items()}


def shifted(p, loss, grads):
    return loss + 0.3 * (~p.mask.any(1)).any(), grads


def zeros_spoil(p, loss, grads):
    return (np.nan if (~p.t.any(-1)).any() else loss), grads


# ------------------------------------------------------------------------------------------------ lines of the survey

VALUES = {
    "threshold.constant": 0.3, "logits.temperature_constant": 0.1, "loss.factor": 2.0, "loss.one_direction": "vt",
    "weights.softmax_cut": 0.2, "weights.temperature": 0.5, "logits.scaled": 2.0, "logits.special_left_out": "the first token",
    "loss.sigmoid": -1.0, "loss.smoothing": 0.1, "loss.constant": 0.2, "global.one_direction": "vt",
    "global.temperature_constant": 0.1, "global.factor": 2.0, "logits.detached": "c", "weights.softmax_minmax": "s_hat",
    "weights.raw": "s", "edge.nan_gradient": "flat",
}
BESIDE = {"weights.temperature": Variant(weights="softmax"), "weights.epsilon": Variant(no_norm="c")}  # where it can be seen
SMALL = {"similarity.epsilon": "key_norm", "weights.epsilon": "sum", "norm.epsilon": "norm", "loss.epsilon": "log"}


def own_case(id_):
    """An explanation that has a line of the survey, the run in which it is so, and one in which it is not."""
    found = Found(id_, VALUES.get(id_))
    if id_ in SMALL:
        fine = replace(BESIDE.get(id_, PAPER), eps=((SMALL[id_], 0.01),), cosine=id_ == "similarity.epsilon")
        return Found(id_, 0.01), fine, None, {}, box(fine), box(replace(fine, eps=()))
    if id_ == "weights.temperature":
        return found, replace(BESIDE[id_], own_tau=0.5), None, {}, box(replace(BESIDE[id_], own_tau=0.5)), box(BESIDE[id_])
    if id_.startswith("gradient."):
        return gradient_case(id_)
    if id_ == "threshold.strict":
        return found, replace(PAPER, strict=True), None, {}, box(Variant(strict=True)), box()
    if id_ == "threshold.rounding":
        fine = Variant(flat="zero")
        rounded = box(replace(fine, eps=(("range", 1e-6),)))
        return found, fine, None, {"also": [found]}, rounded, box(fine)
    if id_ == "edge.all_padding":
        found = Found(id_, "shifts")
        return found, PAPER, None, {"also": [found]}, box(change=shifted), box()
    if id_ == "edge.zero_padding":
        found = Found(id_, way="loss")
        return found, PAPER, None, {"also": [found]}, box(change=zeros_spoil), box()
    if id_ == "edge.no_gradient":
        found = Found(id_, "t")
        return found, PAPER, None, {"also": [found]}, box(change=times("t", 0.0)), box()
    fine, pairs = variant_of([found])
    if id_.startswith("global."):
        pooled = {side: "mean" for side in ("vision", "text") if getattr(pairs, side) != "given"}
        return found, None, pairs, {}, box(pairs=pairs), box(pairs=GlobalVariant(**pooled))
    if DEVIATIONS[id_].harmless:                          # where it is not: its effect does not cancel
        return found, fine, None, {}, box(fine), box(OTHER)
    return found, fine, None, {}, box(fine), box()


def gradient_case(id_):
    _, leaf, kind = (*id_.split("."), "")[:3]
    if id_ == "gradient.padding_not_zero":
        found, wrong, change = Found(id_), Wrong(padding=True), padding_counts
    elif id_ == "gradient.flat_rows":
        found, wrong, change = Found(id_), Wrong(flat=True), flat_counts
    else:
        found = Found(id_, "its path through c")
        units = {"of_tau": (-1.0, "1/tau"), "of_scale": (1.0, "tau")}
        factor, unit = units.get(kind, (-1.0 if kind == "sign" else 0.5, ""))
        slope = Slope(leaf, ((1.0, PAPER),), factor, unit)
        wrong = Wrong(slopes={leaf: slope})

        def change(p, loss, grads):
            return loss, grads | {leaf: np.reshape(slope.of(p), np.shape(grads[leaf]))}
    wrong.found.append(found)
    return found, PAPER, None, {"wrong": wrong, "also": [found]}, box(change=change), box()


LINES = [id_ for id_ in DEVIATIONS if not (id_.startswith("edge.") and id_ not in confirm.SPECIAL and id_ != "edge.no_gradient")
         and id_ not in ("logits.directions_swapped",)]


def survey(id_, n):
    found, fine, pairs, how, *asks = own_case(id_)
    part = part_of(asks[n], fine, pairs, **how)
    text = say(part.read, "survey", part=part, found=found, clause=words(found), tol=TOL)
    return text, words(found)


@pytest.mark.parametrize("id_", LINES)
def test_a_line_of_the_survey_is_said_where_it_is_so(id_):
    text, clause = survey(id_, 0)
    assert text == clause


@pytest.mark.parametrize("id_", LINES)
def test_a_line_of_the_survey_is_withheld_where_it_is_not(id_):
    assert survey(id_, 1)[0] == ""


def test_what_makes_no_difference_is_withheld():
    """Beside a softmax the threshold has nothing to do."""
    fine = Variant(weights="softmax", strict=True)
    part = part_of(box(fine), fine)
    for found in (Found("threshold.strict"), Found("loss.factor", 1.0)):
        assert not say(part.read, "survey", part=part, found=found, clause=words(found), tol=TOL)


# ------------------------------------------------------------------------------------------------------- the headline

FACTS = {"base": "eq6", "tol": TOL, "what": "Your loss", "what_inside": "your loss", "equation": "eq. 6",
         "compared": "value and gradients", "ties": "", "clauses": "so and so", "conditions": "no padding",
         "sizes": "P at most 3", "held": ("no padding",)}
PADDED = Variant(open_vt="open", open_tv="open")
SHARP, BLUNT = (Limit("P", 32, 33, 196, 0.12, None, sharp=sharp) for sharp in (True, False))
REST = {"rest": "that of eq. 6", "many": 31}
BOTH = {"leaves": ("t", "theta"), "padded": False, "names": "tokens and theta", "s": "s", "are": "are"}
PLACE = {"leaf": "v", "place": "The gradient for patches is off by up to 0.5 of its largest entry."}


def with_part(ask, fine=PAPER, how=(), change=lambda part: part, **facts):
    return ask, fine, dict(how), change, facts


def one_token(part):
    return replace(part, probes=tuple(ONE_TOKEN.values()), held_out=())


# kind -> a run in which it is true, one in which it is false
RUNS = {
    "equals": (with_part(box()), with_part(box(OTHER))),
    "equals listing1": (with_part(box(Variant(reduction="token")), base="listing1"), with_part(box(), base="listing1")),
    "inside": (with_part(box()), with_part(box(OTHER))),
    "except": (with_part(box(OTHER), OTHER), with_part(box(), OTHER)),
    "inside except": (with_part(box(OTHER), OTHER), with_part(box(PADDED), OTHER)),
    "smaller except": (with_part(box(OTHER), OTHER), with_part(box(PADDED), OTHER)),
    "value except": (with_part(box(OTHER, change=times("v", 0.3)), OTHER), with_part(box(OTHER), OTHER)),
    "gradient": (with_part(box(change=times("v", 0.3))), with_part(box(OTHER))),
    "partly": (with_part(box(OTHER)), with_part(box())),
    "differs": (with_part(box(OTHER)), with_part(box())),
    "where": (with_part(box(PADDED)), with_part(box(OTHER))),
    "untold": (with_part(box(), others="this", sets=[(Found("logits.directions_swapped"),)]),
               with_part(box(), others="this", sets=[(Found("threshold.constant", 0.3),)])),
    "value right": (with_part(box(change=times("v", 2.0)), **REST), with_part(box(OTHER), **REST)),
    "gradients right": (with_part(box(change=times("v", 2.0)), **BOTH), with_part(box(change=times("t", 2.0)), **BOTH)),
    "gradient off": (with_part(box(change=times("v", 2.0)), **PLACE), with_part(box(change=times("t", 2.0)), **PLACE)),
    "float32 alone": (with_part(box(Variant(factor=1 + 1e-7)), near=(1e-6, 1e-5)), with_part(box(), near=(1e-6, 1e-5))),
    "rounded": (with_part(box(Variant(factor=1 + 1e-7)), near=(1e-6, 1e-5)), with_part(box(), near=(1e-6, 1e-5))),
    "nothing known": (with_part(box(), change=one_token), with_part(box())),
    "one token alone": (with_part(box(), change=one_token), with_part(box())),
    "does not hold": (with_part(box(OTHER), batch="padded", probe=confirm.fresh("padded")[0]),
                      with_part(box(), batch="padded", probe=confirm.fresh("padded")[0])),
    "limit": (with_part(box(), limit=SHARP, words=SHARP.words, weaker=BLUNT.words),
              with_part(box(), limit=BLUNT, words=SHARP.words, weaker=BLUNT.words)),
    "one width": (with_part(box(), refused=lambda: True), with_part(box(), refused=lambda: False)),
    "squares": (with_part(box(), refused=lambda: True), with_part(box(), refused=lambda: False)),
    "behaviour": (with_part(box(), evidence="two halves differ", again=lambda: True),
                  with_part(box(), evidence="two halves differ", again=lambda: False)),
}
ALONE = ("one width", "squares", "behaviour")                 # their measurement needs no explanation


def headline(kind, n):
    ask, fine, how, change, facts = RUNS[kind][n]
    part = change(part_of(ask, fine, **how))
    facts = facts if kind in ALONE else {"part": part} | FACTS | facts
    return say(part.read, kind, **facts), part.read.box.door, facts


@pytest.mark.parametrize("kind", RUNS)
def test_said_where_it_is_true(kind):
    text, door, facts = headline(kind, 0)
    assert text == TEMPLATES[kind].words.format(**facts) and "{" not in text and door.counts == {
        "said": 1, "weaker": 0, "withheld": 0}


@pytest.mark.parametrize("kind", RUNS)
def test_withheld_or_weaker_where_it_is_false(kind):
    text, door, facts = headline(kind, 1)
    assert text == TEMPLATES[kind].weaker.format(**facts) and door.counts["said"] == 0


def test_gradients_that_are_nowhere_finite():
    for change, said in ((no_numbers, True), (times("v", 1.0), False)):
        part = part_of(box(change=change))
        place = "Its gradients are finite on no batch."
        assert bool(say(part.read, "gradient off", part=part, tol=TOL, leaf="", place=place)) == said
