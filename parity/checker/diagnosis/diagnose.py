"""From answers to an explanation: which set of deviations reproduces a black box, loss and gradients, to rounding.

diagnose(ask) asks probes (parity.checker.probes), explains each loss (explain, search) and measures under which
conditions it equals the paper.  What nothing explains is located at its stage (locate) and called unexplained.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from parity.checker.diagnosis import gradients, totals
from parity.checker.diagnosis.asking import Box, gradient_off, loss_off
from parity.checker.diagnosis.deviations import CONDITIONS, DEVIATIONS, STAGES, Found
from parity.checker.diagnosis.findings import Diagnosis, Effect, Off, sentence
from parity.checker.diagnosis.locate import Place, locate
from parity.checker.diagnosis.traced import follow
from parity.checker.probes import PROBES, Answer, Probe

__all__ = ["PROBES", "Answer", "Diagnosis", "Effect", "Found", "Off", "Probe", "diagnose"]

def diagnose(ask: Callable[[Probe], Answer]) -> Diagnosis:
    """Say what a black box computes.      ask(Probe) -> Answer"""
    box = Box(ask)
    answer = box(PROBES["padded"])
    if answer.error is not None:
        return Diagnosis("cannot_run", error=answer.error, evidence="padded", calls=box.calls)
    if not answer.losses:
        return Diagnosis("cannot_run", error="no loss was given", evidence="padded", calls=box.calls)
    parts = totals.explain(box)
    results = {part.name: judge(box, part) for part in parts}
    return combine(box, parts, results)


def judge(box, part) -> Diagnosis:
    """The verdict on one loss."""
    tol, grad_tol = box.tolerances()
    probes = [p for p in part.probes if part.name != "global" or len(p.v) > 1]
    if all(part.read(p).error for p in probes if len(p.v) == 1):  # it takes no batch of one: judged by the others, and said
        probes = [p for p in probes if len(p.v) > 1]
    offs = {base: {p.name: compare(part, p, base) for p in probes} for base in part.bases}
    agree = {base: {name: _agrees(o, tol, grad_tol) for name, (o, _) in row.items()} for base, row in offs.items()}
    tangent = {base: {name: _agrees(o, tol, grad_tol) for name, (_, o) in row.items()} for base, row in offs.items()}
    base, conditions = needed(probes, agree, tangent, part)
    failing, worst = reproduce(part, [*probes, *part.held_out], tol, grad_tol)
    facts = [*part.facts, *about_gradients(part, tol)]
    found = sorted(part.found, key=lambda d: STAGES.index(DEVIATIONS[d.id].stage))
    deviations = tuple(d for d in found if not DEVIATIONS[d.id].harmless)
    harmless = tuple(d for d in found if DEVIATIONS[d.id].harmless) + watched(box, part, deviations)
    strict = [d for d in deviations if d.id == "threshold.strict"]
    if base is not None and not conditions and not strict:
        verdict = {"eq6": "eq6", "listing1": "listing1"}[base]
        if verdict == "eq6":
            deviations = ()
    elif base is not None and not strict:
        verdict = "conditional"
    else:
        conditions = ()
        verdict = "explained" if part.explained and not failing and deviations else "unexplained"
    place = None
    if not part.explained or failing:
        place = place_of(box, part, failing)
        facts = [*facts, place.words]
    if verdict == "unexplained":
        deviations = ()                                   # a part of the truth may be none of it
    off = tuple(Off(name, *o) for name, (o, _) in offs[part.bases[0]].items())
    return Diagnosis(
        verdict, conditions, deviations, harmless, tuple(map(tuple, part.equals)),
        stage=first_stage(verdict, deviations, place),
        evidence=_evidence(off, deviations) if verdict not in ("eq6", "listing1") else None,
        off=off, effects=part.effects(deviations), reproduced_to=worst if not failing and part.explained else None,
        note=" ".join(filter(None, facts)), calls=box.calls,
    )


def about_gradients(part, tol) -> list[str]:
    """What is right beside a gradient that is not."""
    wrong, fine = part.how.wrong, part.how.fine
    if fine is None or (wrong is None and not (fine.detach and part.how.gradient)):
        return []
    probes = [p for p in (*part.probes, *part.held_out) if part.read(p).error is None and not part.excused(p, part.read(p))]
    right = all(min(loss_off(part.read(p).value, value) for value, _ in part.models(p)) < tol for p in probes)
    known = [d for d in part.found if not d.id.startswith("gradient.") and not d.id.endswith(".detached")]
    value = f"{'explained by the rest' if known else 'that of eq. 6'} on all {len(probes)} batches asked" if right else ""
    if wrong is None:
        return [gradients.of_detached(part.read, fine, part.read.box.tolerances()[1], value)]
    return [gradients.sentence(wrong, value)]


def first_stage(verdict, deviations, place):
    if verdict in ("eq6", "listing1"):
        return None
    stages = [DEVIATIONS[d.id].stage for d in deviations] + ([place.stage] if place else [])
    return min(stages, key=STAGES.index, default=None)


def place_of(box, part, failing) -> Place:
    """Where it leaves the paper: by the arrays that it makes, where it can be watched, and by its values."""
    if part.name == "global":
        return Place("global", "padded")
    if part.how.wrong is not None and part.how.wrong.place:
        return Place("gradient", part.how.wrong.probe)
    if part.how.reached == "all":
        first = failing[0] if failing else "padded"
        stage = "minmax" if first.startswith("flat") else "edge" if first.startswith(("zero", "all_padding")) else "weights"
        return Place(stage, first, f"On the probe {first} the explanation does not hold." if failing else "")
    again = replace(PROBES["single"], v=PROBES["single"].v * (1 + 1e-13), name="single_again_the_same")
    if abs(part.read(again).value - part.read(PROBES["single"]).value) > 1e-6:
        seen = followed(box, part)
        return Place(seen.stage if seen and seen.stage else "loss", "single", "Two calls with the same input give two results.")
    seen = followed(box, part) if part.how.reached == "nothing" else None
    if seen is not None and seen.stage not in (None, "loss", "reduction"):
        return Place(seen.stage, "single", f"What it makes is ours up to {seen.where}." if seen.where else "")
    return locate(part.read, part.how)


def followed(box, part):
    probe = PROBES["single"]
    how = part.how
    settings = [o for o in [how.fine, *how.survivors] if o is not None]
    sigmas = [o.sigma for o in settings if isinstance(o.sigma, float)]
    taus = [o.tau for o in settings if o.tau is not None]
    records = box.trace(probe)
    return follow(records, probe, sigmas, taus, loose=box.dtype() == "float32") if records else None


def watched(box, part, deviations) -> tuple[Found, ...]:
    """Harmless differences that only the arrays on the way show; where weights are a softmax or raw, no factor is harmless."""
    ids = {d.id for d in deviations}
    if part.name == "global" or ids & {"minmax.missing", "weights.softmax", "weights.raw", "similarity.patches_group"}:
        return ()
    seen = followed(box, part)
    return () if seen is None else seen.harmless


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
    """The smallest set of conditions under which all probes that fulfil it agree with a reading of the paper."""
    for size in range(3):
        fitting = []
        for base, wanted in itertools.product(part.bases, itertools.combinations(CONDITIONS, size)):
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
        return replace(only, losses=results, lambdas=parts[0].lambdas, calls=box.calls, note=sentence(only, name, parts[0]))
    order = ("eq6", "listing1", "conditional", "explained", "unexplained")
    worst = max(results.values(), key=lambda d: order.index(d.verdict))
    conditions = tuple(c for c in CONDITIONS if any(c in d.conditions for d in results.values()))
    verdict = worst.verdict
    reproduced = [d.reproduced_to for d in results.values()]
    if verdict == "conditional" and len(conditions) > 2:
        verdict, conditions = "unexplained" if None in reproduced else "explained", ()
    if verdict not in ("conditional",):
        conditions = ()
    wrong = [d for d in results.values() if d.verdict == worst.verdict]
    note = " ".join(sentence(d, name, part) for (name, d), part in zip(results.items(), parts))
    lambdas = {k: x for part in parts for k, x in part.lambdas.items()}
    return Diagnosis(
        verdict, conditions, equals=worst.equals, stage=wrong[0].stage, evidence=wrong[0].evidence, off=wrong[0].off,
        reproduced_to=None if None in reproduced else max(reproduced), note=note, losses=results, lambdas=lambdas,
        calls=box.calls,
        deviations=tuple(x for d in results.values() for x in d.deviations),
        harmless=tuple(x for d in results.values() for x in d.harmless),
        effects=tuple(x for d in results.values() for x in d.effects),
    )
