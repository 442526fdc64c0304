"""Is an explanation, and each clause of it, so on batches that no search used?

A clause is supported where the explanation gives fresh batches, and does not once the clause is taken out of it.  One that says
"without effect" is supported where taking it out changes nothing.  `part` is totals.Part: one loss and its explanation.
"""

import math

import numpy as np

from parity.checker.diagnosis.again import KINDS, fresh, under
from parity.checker.diagnosis.asking import Reading, gradient_off, loss_off
from parity.checker.diagnosis.deviations import DEVIATIONS, Found
from parity.checker.diagnosis.switches import EPSILONS
from parity.checker.probes import Probe, knife_probe

Tolerances = tuple[float, float]


def batches(part, kinds=KINDS) -> list[Probe]:
    """Fresh batches that tell this loss from the rest of a total and that it answers; of an old folder the held-out ones."""
    if part.one_token:
        kinds = ("one token",)
    found = [p for kind in kinds for p in fresh(kind)]
    found = [p for p in found if not (part.one_sample and len(p.v) > 1) and not (part.name == "global" and len(p.v) == 1)]
    found = [p for p in found if part.read(p).error is None and part.told_apart(p)]
    return found or [p for p in part.held_out if kinds == KINDS and part.read(p).error is None]


def close(reading, model, tol: Tolerances) -> bool:
    """Value and, where there is one, gradient.      model: (value, gradients)"""
    value, grads = model
    off = gradient_off(reading.grads, grads)
    return loss_off(reading.value, value) < tol[0] and (off is None or off < tol[1])


def gives(part, probe, tol: Tolerances, leaf: str = "") -> bool:
    """Whether the explanation gives what is read.      leaf: of gradients, this input's alone"""
    reading = part.read(probe)
    if leaf:
        reading = Reading(reading.value, {k: g for k, g in reading.grads.items() if k == leaf})
    models = [(value, {k: g for k, g in grads.items() if k == leaf or not leaf}) for value, grads in part.models(probe)]
    return part.excused(probe, reading) or any(close(reading, model, tol) for model in models)


def paper_gives(part, probe, base: str, tol: Tolerances) -> bool:
    return close(part.read(probe), part.paper(probe, base), tol)


# ------------------------------------------------------------------------------------------------ lines of the survey


def supported(read, part, found: Found, tol: Tolerances) -> bool:
    """Whether fresh batches show what a line of the survey says."""
    if part.how.fine is None and part.how.pairs is None:  # nothing explains it, so that nothing can be taken out
        return False
    if found.id in SPECIAL:
        return SPECIAL[found.id](part, found, tol)
    asked = batches(part)
    without = part.without(found)
    leaf = found.id.split(".")[1] if found.id.startswith("gradient.") and found.id.count(".") > 1 else ""
    if not asked or without is None or not all(gives(part, p, tol, leaf) for p in asked):
        return False
    shown = any(not gives(without, p, tol, leaf) for p in asked)
    cancels = DEVIATIONS[found.id].harmless and found.id not in EPSILONS.values()
    if found.id == "edge.no_gradient":
        shown = shown and not any(np.any(part.read(p).grads.get(str(found.value), 0.0)) for p in asked)
    return shown != cancels


def knife(part, found, tol) -> bool:
    """What is exactly sigma is dropped, among eight patches as among four."""
    o = part.how.fine
    if o is None or part.name == "global":
        return False
    samples = 2 if o.negatives == "position" else 1
    many = 8 if o.sigma == "keys" else 6
    sigma = 1 / many if o.sigma == "keys" else float(o.sigma)
    dropped = [part.drops(knife_probe(sigma, samples, lengthen=x, patches=many)) for x in (1.0, 2.0**40)]
    return dropped == ([True, True] if found.id == "threshold.strict" else [True, False])


def zero_padding(part, found, tol) -> bool:
    """Zeros at padding spoil the loss, or the gradient."""
    readings = [part.read(p) for p in batches(part, ("zero",))]
    spoilt = [not r.finite if found.way == "loss" else r.finite and r.nan_gradient for r in readings]
    return bool(spoilt) and any(spoilt)


def empty_caption(part, found, tol) -> bool:
    asked = [p for p in fresh("empty") if not part.one_sample and not part.one_token]
    readings = [part.read(p) for p in asked]
    if not asked:
        return False
    if found.value == "raises":
        return all(r.error is not None for r in readings)
    if found.value == "poison":
        return all(r.error is None and (not r.finite or r.nan_gradient) for r in readings)
    return all(r.error is None and r.finite and not gives(part, p, tol) for p, r in zip(asked, readings))


def pooled_from_slot(part, found, tol) -> bool:
    """The global loss takes the first embedding: others than the first do not move it."""
    if part.how.pairs is not None and "cls" in (part.how.pairs.vision, part.how.pairs.text):
        asked, without = batches(part), part.without(found)
        return bool(asked) and all(gives(part, p, tol) for p in asked) and any(not gives(without, p, tol) for p in asked)
    return any(np.any(part.read(p).grads.get("v_bar", 0.0)) for p in batches(part))


SPECIAL = {
    "threshold.strict": knife, "threshold.rounding": knife, "edge.zero_padding": zero_padding,
    "edge.all_padding": empty_caption, "global.uses_cls": pooled_from_slot,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------- the headline


def equals(read, part, base: str, tol: Tolerances) -> bool:
    """The paper's on fresh batches of every kind."""
    asked = batches(part)
    return bool(asked) and all(paper_gives(part, p, base, tol) for p in asked)


def equals_but_for(read, part, base: str, tol: Tolerances) -> bool:
    """Explained on fresh batches of every kind, and not the paper's on all of them (or on knife edges, with zeros, empty)."""
    asked = batches(part)
    every = bool(asked) and all(gives(part, p, tol) for p in asked)
    return every and (not all(paper_gives(part, p, base, tol) for p in asked) or part.only_edges)


def value_but_for(read, part, base: str, tol: Tolerances) -> bool:
    """Its value is explained on fresh batches, and its gradient is not."""
    asked = [p for p in batches(part) if part.read(p).finite]
    values = all(min(loss_off(part.read(p).value, value) for value, _ in part.models(p)) < tol[0] for p in asked)
    return bool(asked) and values and not all(gives(part, p, tol) for p in asked)


def differs(read, part, base: str, tol: Tolerances) -> bool:
    """Not the paper's on some fresh batch, or it gives no number there."""
    asked = batches(part)
    return not asked or any(not paper_gives(part, p, base, tol) for p in asked)


def holds_under(read, part, base: str, tol: Tolerances, conditions: tuple[str, ...]) -> bool:
    """The paper's wherever the conditions hold, on batches that fulfil nothing else."""
    asked = [p for p in under(conditions) if part.read(p).error is None]
    asked = [p for p in asked if not (part.one_sample and len(p.v) > 1) and not (part.name == "global" and len(p.v) == 1)]
    unit = "unit-norm patches" in conditions
    for p in asked:
        reading, (value, grads) = part.read(p), part.paper(p, base)
        off = gradient_off(reading.grads, grads, p.v if unit else None)
        if not (loss_off(reading.value, value) < tol[0] and (off is None or off < tol[1])):
            return False
    return bool(asked)


# ---------------------------------------------------------------------------------------------------------- gradients


def value_right(read, part, tol: Tolerances) -> bool:
    """The loss itself, whatever its gradient, on fresh batches."""
    asked = [p for p in batches(part) if math.isfinite(part.read(p).value)]
    return bool(asked) and all(
        min(loss_off(part.read(p).value, value) for value, _ in part.models(p)) < tol[0] for p in asked)


def gradients_right(read, part, tol: Tolerances, leaves: tuple[str, ...], real_alone: bool = False) -> bool:
    """The gradients for these inputs are those of the value's explanation; real_alone: of tokens, but for padding."""
    asked = [p for p in batches(part, ("padded", "unpadded", "single", "equal")) if part.read(p).grads]
    for p in asked:
        given, wanted = part.read(p).grads, part.own_gradients(p)
        for leaf in leaves:
            got, want = (np.reshape(g[leaf], np.shape(wanted[leaf])) for g in (given, wanted))
            if leaf == "t" and real_alone:
                got, want = (np.where(p.mask[..., None], g, 0.0) for g in (got, want))
            if (gradient_off(wanted | {leaf: got}, wanted | {leaf: want}) or 0.0) > tol[1]:
                return False
    return bool(asked)


def gradient_wrong(read, part, tol: Tolerances, leaf: str) -> bool:
    """The gradient for an input is not the one of the value's explanation; of none: it is finite nowhere."""
    if not leaf:
        return all(part.read(p).error is None and part.read(p).nan_gradient for p in batches(part))
    return not gradients_right(read, part, tol, (leaf,))
