"""From answers to an explanation: which set of deviations reproduces a black box, loss and gradients, to rounding.

diagnose(ask) asks probes (parity.checker.probes), explains each loss (explain, search) and measures under which
conditions it equals the paper.  What nothing explains is located at its stage (locate) and called unexplained.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from parity.checker.diagnosis import confirm, gradients, search, totals
from parity.checker.diagnosis.again import fewest_tokens, fresh, under, within_limits
from parity.checker.diagnosis.asking import PRECISION, Box, gradient_off, loss_off, two_values
from parity.checker.diagnosis.clauses import say
from parity.checker.diagnosis.deviations import CONDITIONS, DEVIATIONS, RARE, STAGES, Found, words
from parity.checker.diagnosis.explain import FIRST, Explanation, Reader
from parity.checker.diagnosis.findings import Diagnosis, Effect, Off, sentence
from parity.checker.diagnosis.placing import followed, place_of
from parity.checker.diagnosis.reach import reach
from parity.checker.diagnosis.sizes import Limit
from parity.checker.probes import PROBES, Answer, Probe

NEAR = PRECISION["rounded"]

__all__ = ["PROBES", "Answer", "Diagnosis", "Effect", "Found", "Off", "Probe", "diagnose"]

def diagnose(ask: Callable[[Probe], Answer], edges: bool = False) -> Diagnosis:
    """Say what a black box computes.      ask(Probe) -> Answer; edges: what shows only on exact ties counts as a difference"""
    box = Box(ask)
    answer = box(PROBES["padded"])
    if answer.error is not None:
        return Diagnosis("cannot_run", error=answer.error, evidence="padded", calls=box.calls)
    if not answer.losses:
        return Diagnosis("cannot_run", error="no loss was given", evidence="padded", calls=box.calls)
    if words := unsteady(box):
        return Diagnosis("unexplained", note=words, calls=box.calls, sentences=counts(box))
    parts = totals.explain(box)
    results = {part.name: judge(box, part, edges) for part in parts}
    if any(results[part.name].verdict == "unexplained" and nearly(part) for part in parts):
        box.rounded, box.door = True, None                # once more, with what float32 leaves of a number in mind
        parts = totals.explain(box)
        results = {part.name: judge(box, part, edges) for part in parts}
    return combine(box, parts, results)


def unsteady(box) -> str:
    """What is said of a box that gives the same batch two values; "" where it does not, or cannot be asked again."""
    for which in box(PROBES["padded"]).losses:
        read = Reader(box, which)
        if seen := two_values(read, PROBES["padded"]):
            return say(read, "unsteady", one=seen[0], two=seen[1], again=lambda read=read: two_values(read, PROBES["unpadded"]))
    return ""


def nearly(part) -> bool:
    """Whether one sample is explained to float32's rounding, and not to float64's: some number was rounded on the way."""
    if part.name == "global" or part.how.reached != "nothing" or part.read.box.dtype() != "float64":
        return False
    asked = [PROBES[name] for name in FIRST]
    return bool(search.first_level(part.read, asked, ("keys", "none"), "tokens", False, PRECISION["rounded"][0]))


def judge(box, part, count_edges=False) -> Diagnosis:
    """The verdict on one loss."""
    tol, grad_tol = box.tolerances()
    probes = [p for p in part.probes if part.name != "global" or len(p.v) > 1]
    probes = [p for p in probes if not (part.read(p).error or "").startswith(("the folder has no", "out."))] or probes
    if all(part.read(p).error for p in probes if len(p.v) == 1):  # it takes no batch of one: judged by the others, and said
        probes = [p for p in probes if len(p.v) > 1]
    offs = {base: {p.name: compare(part, p, base) for p in probes} for base in part.bases}
    agree = {base: {name: _agrees(o, tol, grad_tol) for name, (o, _) in row.items()} for base, row in offs.items()}
    tangent = {base: {name: _agrees(o, tol, grad_tol) for name, (_, o) in row.items()} for base, row in offs.items()}
    base, conditions = needed(probes, agree, tangent, part)
    if conditions and not all(right(part, p, base, conditions, tol, grad_tol) for p in under(conditions)):
        base, conditions = None, ()                       # it only looked so on few batches
    if base is None and not part.explained:               # rounded on the way: equal, though not to float64's rounding
        near = {b: {name: _agrees(o, *NEAR) for name, (o, _) in row.items()} for b, row in offs.items()}
        if rounded := next((b for b in part.bases if all(near[b][p.name] for p in probes)), None):
            base, (tol, grad_tol) = rounded, NEAR
            part.how.facts[:] = [say(part.read, "float32 alone", part=part, base=base, near=NEAR, tol=box.tolerances())]
    if not part.explained and base is None:
        base, conditions, probes = bounded(box, part, probes, agree) or (base, conditions, probes)
    if base is not None and not conditions:
        part.settle(base)                                 # the paper's own numbers, whatever other sizes say
    held_out = [p for p in (*part.held_out, *confirm.batches(part)) if len(probes) == len(offs[part.bases[0]])]
    failing, worst = reproduce(part, [*probes, *held_out], tol, grad_tol)
    limits, tried, sized = within(box, part, base, conditions, failing, tol, grad_tol)
    failing += sized
    if base is not None and limits and {"no padding", "equal lengths"} & set(conditions):
        milder = tuple(x for x in conditions if x not in ("no padding", "equal lengths"))
        inside = [p for p in within_limits(limits) if set(milder) <= p.holds | {"B = 1"}]
        if inside and all(right(part, p, base, milder, tol, grad_tol) for p in inside):
            conditions, part.how = milder, Explanation()   # it was short captions that padding brought with it
            part.settle(base)
            many = [p for p in (*probes, *held_out) if p.mask.sum(1).min() >= fewest_tokens(limits)]
            failing, worst = reproduce(part, many, tol, grad_tol)
    found = sorted(part.found, key=lambda d: STAGES.index(DEVIATIONS[d.id].stage))
    edges = tuple(d for d in found if DEVIATIONS[d.id].edge)
    strict = edges if count_edges else ()
    deviations = tuple(d for d in found if (not DEVIATIONS[d.id].harmless and d not in edges) or d in strict)
    harmless = tuple(d for d in found if DEVIATIONS[d.id].harmless) + watched(box, part, deviations)
    if base is not None and not strict and not (failing and not conditions):
        conditions = (*conditions, *(x.condition for x in limits))
        verdict = "conditional" if conditions else base
        if verdict == "eq6" or (base == "eq6" and not set(conditions) & set(CONDITIONS)):
            deviations = ()
    else:
        conditions = ()
        verdict = "explained" if part.explained and not failing and not limits and deviations else "unexplained"
    place = None
    if not part.explained or failing:
        place = place_of(box, part, failing)
    if box.rounded and part.explained:
        part.facts.append(say(part.read, "rounded", part=part, near=NEAR, tol=PRECISION["float64"]))
    where = [place.words] if place and not said(place, conditions) else []
    facts = [*part.facts, *about_gradients(part, (tol, grad_tol)), *where, *(limited(part, x) for x in limits)]
    by_value = verdict == "unexplained" and part.how.gradient is False and part.how.reached == "all" and confirm.value_right(
        part.read, part, (tol, grad_tol))
    if verdict == "unexplained" and (failing or not part.explained) and not by_value:
        deviations = ()                                   # a part of the truth may be none of it
    loose = (tol, 1e300 if by_value else grad_tol)        # of one input's gradient something is known, not of another's
    clauses = {d: say(part.read, "survey", part=part, found=d, clause=words(d),
                      tol=(tol, grad_tol) if d.id.startswith("gradient.") else loose)
               for d in (*deviations, *harmless, *edges)}
    clauses = {d: text for d, text in clauses.items() if text}
    dropped = any(d not in clauses and d.id not in ("edge.all_padding", "edge.zero_padding") for d in deviations)
    deviations, harmless, edges = (tuple(d for d in some if d in clauses) for some in (deviations, harmless, edges))
    off = tuple(Off(name, *o) for name, (o, _) in offs[base if base and verdict != "unexplained" else part.bases[0]].items())
    return Diagnosis(
        verdict, conditions, deviations, harmless, tuple(map(tuple, part.equals)),
        stage=first_stage(verdict, () if by_value else deviations, place) or next((x.stage for x in limits if x.stage), None),
        evidence=_evidence(off, deviations) if verdict not in ("eq6", "listing1") else None,
        off=off, effects=part.effects(deviations), reproduced_to=worst if not failing and part.explained else None,
        note=" ".join(filter(None, facts)), calls=box.calls, limits=limits, tried=tried,
        rounding=(tol, grad_tol),
        edges=edges if verdict != "unexplained" and not strict else (),
        base="eq1" if part.name == "global" else base if base and verdict in ("listing1", "conditional") else "eq6",
        clauses=clauses, stage_open=place.open if place and verdict == "unexplained" else (),
        stage_seen=place is None or bool(place.words) or place.stage in ("gradient", "global"),
        dropped=dropped,
    )


def limited(part, x: Limit) -> str:
    """Where an explanation ends, in words; less of it where fresh numbers do not agree with a limit there."""
    return say(part.read, "limit", limit=x, words=x.words, weaker=replace(x, sharp=False, scattered=False).words)


def said(place, conditions) -> bool:
    """Whether the conditions say it already: where captions are equally long, it equals."""
    return place.stage == "reduction" and "equal lengths" in conditions


def about_gradients(part, tol) -> list[str]:
    """What is right beside a gradient that is not."""
    wrong, fine = part.how.wrong, part.how.fine
    if part.how.pairs is not None and part.how.gradient is False:
        wrong = gradients.of_pairs(part, confirm.batches(part), tol[1])
        return [*about_inputs(part, wrong, tol)]
    if fine is None or (wrong is None and not (fine.detach and part.how.gradient)):
        return []
    probes = [p for p in (*part.probes, *part.held_out) if part.read(p).error is None and not part.excused(p, part.read(p))]
    right = all(min(loss_off(part.read(p).value, value) for value, _ in part.models(p)) < tol[0] for p in probes)
    known = [d for d in part.found if not d.id.startswith(("gradient.", "edge.no_gradient")) and not d.id.endswith(".detached")]
    said = []
    if right:
        rest = "explained by what is named here" if known else "that of eq. 6"
        said.append(say(part.read, "value right", part=part, tol=tol, rest=rest, many=len(probes)))
    if wrong is None:
        wrong = gradients.of_detached(part.read, fine, tol[1])
    return said + about_inputs(part, wrong, tol)


def about_inputs(part, wrong, tol) -> list[str]:
    """Whose gradient is right, whose is not."""
    said = []
    names = [gradients.INPUTS[leaf] for leaf in wrong.right]
    padded = wrong.padding and "t" not in wrong.slopes and not wrong.place
    names += ["real tokens"] if padded else []
    if names:
        many = len(names) > 1
        leaves = (*wrong.right, *("t",) * padded)
        said.append(say(part.read, "gradients right", part=part, tol=tol, leaves=leaves, padded=padded,
                        names=gradients.listed(names), s="s" * many, are="are" if many else "is"))
    for leaf, place in wrong.places:
        said.append(say(part.read, "gradient off", part=part, tol=tol, leaf=leaf, place=place))
    return said


def right(part, probe, base, conditions, tol, grad_tol) -> bool:
    """Whether it is the paper's on a batch that was not asked before; one that raises is no witness."""
    if part.read(probe).error or (part.one_sample and len(probe.v) > 1) or (part.name == "global" and len(probe.v) == 1):
        return True
    loss, tangent = compare(part, probe, base)
    return _agrees(tangent if "unit-norm patches" in conditions else loss, tol, grad_tol)


def bounded(box, part, probes, agree):
    """Is an unexplained loss the paper's at some sizes, and at which?      -> base, no conditions, the probes of those sizes"""
    for base in part.bases:
        def models(probe, base=base):
            return [part.paper(probe, base)]
        found = reach(box, part.read, models, alone=part.one_sample, sizes_alone=True)
        inside = [p for p in probes if not any(x.beyond(p) for x in found.limits)]
        usual = inside or found.wrong < 0.5               # not what is right with four patches alone
        if found.limits and not found.small and usual and all(agree[base][p.name] for p in inside):
            return base, (), inside
    return None


def within(box, part, base, conditions, failing, tol, grad_tol) -> tuple[tuple[Limit, ...], dict[str, list], list[str]]:
    """Real sizes and designed probes.      -> limits, what was tried, probes on which it fails otherwise"""
    if part.one_token:                                    # at other sizes the rest of the total comes in
        part.facts.append(say(part.read, "one token alone", part=part) if part.explained else "")
        return (), {}, []
    whole = bool({"no padding", "equal lengths"} & set(conditions))
    if part.explained and not failing:
        def models(probe):
            return list(part.models(probe, empty=True))
    elif base is not None and "unit-norm patches" not in conditions:
        def models(probe):
            return [part.paper(probe, base)]
    else:
        return (), {}, []
    one = part.one_sample
    found = reach(box, part.read, models, full=whole, alone=one)
    off = [] if found.limits or not part.explained or failing else designed(box, part, tol, grad_tol)
    part.facts.extend(found.notes)
    return tuple(found.limits), found.tried | {"dtypes": found.dtypes}, off


def designed(box, part, tol, grad_tol) -> list[str]:
    """The designed probes that were asked, and with which the explanation does not agree."""
    off = []
    for probe in list(box.probes.values()):
        reading = part.read(probe)
        if not probe.edge or probe.name.startswith(("epsilon", "knife")) or reading.error:
            continue
        given = {name: g for name, g in reading.grads.items() if name != "theta"}  # 1/tau = 1 is where clamps begin
        offs = [(loss_off(reading.value, value), gradient_off(given, {k: g for k, g in grads.items() if k != "theta"}))
                for value, grads in part.models(probe)]
        if not any(_agrees(x, 10 * tol, 10 * grad_tol) for x in offs):
            off.append(probe.name)
    return off


def first_stage(verdict, deviations, place):
    if verdict in ("eq6", "listing1"):
        return None
    stages = [DEVIATIONS[d.id].stage for d in deviations] + ([place.stage] if place else [])
    return min(stages, key=STAGES.index, default=None)


def watched(box, part, deviations) -> tuple[Found, ...]:
    """Harmless differences that only the arrays on the way show; where weights are a softmax or raw, no factor is harmless."""
    ids = {d.id for d in deviations}
    if part.name == "global" or ids & {"minmax.missing", "weights.softmax", "weights.raw", "similarity.patches_group"}:
        return ()
    seen, again = followed(box, part), followed(box, part, fresh("single")[0])
    return () if seen is None or again is None else tuple(x for x in seen.harmless if x in again.harmless)


def _agrees(off, tol, grad_tol):
    loss, gradient = off
    return loss < tol and (gradient is None or gradient < grad_tol)


def _evidence(off, deviations):
    """The first probe, in the order of PROBES, that is off."""
    if any(d.id == "threshold.strict" for d in deviations):
        return "knife"
    return next((o.probe for o in off if max(o.loss, o.gradient or 0) > 1e-6), None)


def compare(part, probe, base):
    """How far a reading is from the paper: (loss, gradient), and the same with patches' gradients in the tangent."""
    reading = part.read(probe)
    if reading.error is not None:
        return (math.inf, None), (math.inf, None)
    value, grads = part.paper(probe, base)
    loss = loss_off(reading.value, value)
    if not math.isfinite(reading.value):
        return (math.inf, None), (math.inf, None)
    unit = "unit-norm patches" in probe.holds
    return (loss, gradient_off(reading.grads, grads)), (loss, gradient_off(reading.grads, grads, probe.v if unit else None))


def needed(probes, agree, tangent, part) -> tuple[str | None, tuple[str, ...]]:
    """The smallest set of conditions under which all probes that fulfil it agree with a reading of the paper.

    Two that rule out what is rare are less than one that rules out padding.
    """
    def weight(wanted):
        return bool(set(wanted) - set(RARE)), len(wanted)

    every = [wanted for size in range(3) for wanted in itertools.combinations(CONDITIONS, size)]
    for alike in sorted({weight(wanted) for wanted in every}):
        fitting = []
        for base, wanted in itertools.product(part.bases, [wanted for wanted in every if weight(wanted) == alike]):
            table = tangent if "unit-norm patches" in wanted else agree
            chosen = [p for p in probes if set(wanted) <= p.holds]
            alive = [p for p in chosen if abs(part.paper(p, base)[0]) > 1e-6]
            if len(alive) >= 2 and all(table[base][p.name] for p in chosen):
                fitting.append((-len(chosen), part.bases.index(base), base, wanted))
        if fitting:                                       # the mildest: most probes fulfil it
            return min(fitting)[2:]
    return None, ()


def reproduce(part, probes, tol, grad_tol):
    """Probes on which the explanation fails, and its largest error on the others."""
    if not part.explained:
        return [p.name for p in probes], None
    failing, worst = [], 0.0
    for p in probes:
        reading = part.read(p)
        if reading.error is not None or part.excused(p, reading):
            continue
        zero = (p.t == 0).all(-1)                         # F.normalize multiplies the gradient of a zero vector by 1e12
        given = {k: np.where(zero[..., None], 0.0, g) if k == "t" else g for k, g in reading.grads.items()}
        offs = []
        for value, grads in part.models(p):
            grads = {k: np.where(zero[..., None], 0.0, g) if k == "t" else g for k, g in grads.items()}
            offs.append((loss_off(reading.value, value), gradient_off(given, grads)))
        loss, gradient = min(offs, key=lambda o: (not _agrees(o, tol, grad_tol), o[0]))
        if _agrees((loss, gradient), tol, grad_tol):
            worst = max(worst, loss, gradient or 0.0)
        else:
            failing.append(p.name)
    return failing, worst


def combine(box, parts, results) -> Diagnosis:
    """One verdict for all losses that the box gives: the worst, under all conditions together."""
    if len(results) == 1:
        (name, only), = results.items()
        note = sentence(only, name, parts[0])
        return replace(only, losses=results, lambdas=parts[0].lambdas, calls=box.calls, note=note, sentences=counts(box))
    order = ("eq6", "listing1", "conditional", "explained", "unexplained")
    worst = max(results.values(), key=lambda d: order.index(d.verdict))
    every = [c for d in results.values() for c in d.conditions]
    conditions = tuple(dict.fromkeys([c for c in CONDITIONS if c in every] + every))
    verdict = worst.verdict
    reproduced = [d.reproduced_to for d in results.values()]
    if verdict == "conditional" and len(set(conditions) & set(CONDITIONS)) > 2:
        verdict, conditions = "unexplained" if None in reproduced else "explained", ()
    if verdict not in ("conditional",):
        conditions = ()
    wrong = [d for d in results.values() if d.verdict == worst.verdict]
    note = " ".join(sentence(d, name, part, one_of_two=True) for (name, d), part in zip(results.items(), parts))
    lambdas = {k: x for part in parts for k, x in part.lambdas.items()}
    return Diagnosis(
        verdict, conditions, equals=worst.equals, stage=wrong[0].stage, evidence=wrong[0].evidence, off=wrong[0].off,
        reproduced_to=None if None in reproduced else max(reproduced), note=note, losses=results, lambdas=lambdas,
        calls=box.calls,
        deviations=tuple(x for d in results.values() for x in d.deviations),
        harmless=tuple(x for d in results.values() for x in d.harmless),
        effects=tuple(x for d in results.values() for x in d.effects),
        base="listing1" if any(d.base == "listing1" for d in results.values()) else "eq6",
        edges=tuple(x for d in results.values() for x in d.edges), rounding=worst.rounding,
        limits=tuple(x for d in results.values() for x in d.limits),
        tried=next((d.tried for d in results.values() if d.tried), {}),
        clauses={x: text for d in results.values() for x, text in d.clauses.items()}, sentences=counts(box),
        stage_seen=wrong[0].stage_seen, stage_open=wrong[0].stage_open,
    )


def counts(box) -> dict[str, int]:
    return box.door.counts if box.door else {"said": 0, "weaker": 0, "withheld": 0}
