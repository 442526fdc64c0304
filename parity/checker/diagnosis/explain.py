"""One loss of a black box, explained: numbers first, then the search, then the edges, each by the probes that show it."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from parity.checker.diagnosis import extras, gradients, search
from parity.checker.diagnosis.asking import Box, Reading, gradient_off, loss_off, simplest
from parity.checker.diagnosis.clauses import same_losses, say
from parity.checker.diagnosis.deviations import DEVIATIONS, Found
from parity.checker.diagnosis.epsilons import small_fill, small_numbers, value_off
from parity.checker.diagnosis.matching import Candidate, cost, relative
from parity.checker.diagnosis.numbers import FEW, MANY, find_epsilon, find_threshold, law_of, spread
from parity.checker.diagnosis.switches import GlobalVariant, Variant, found_in
from parity.checker.probes import PROBES, Probe, knife_probe, threshold_probe

FIRST = ("single", "single_again", "unit_single")
POSITION = ("unpadded", "unpadded_again", "unit_unpadded")  # where one sample has no negatives
SECOND = ("padded", "padded_again", "unpadded", "equal_lengths", "single_padded", "unit_padded")
FLAT = tuple(name for name in PROBES if name.startswith("flat"))
ZERO = tuple(name for name in PROBES if name.startswith("zero"))
ALONE = tuple(name for name in PROBES if name.startswith("all_padding"))


@dataclass
class Explanation:
    """fine: the setting that reproduces the loss, or None.  reached: what the search got to, "nothing" | "one sample" | "all".

    gradient      True where gradients were compared and agree, False where they do not, None where there are none
    also          deviations that are no switch of the pipeline; facts: sentences for the note
    equals        other sets of deviations that no probe tells apart from this one
    """

    fine: Variant | None = None
    pairs: GlobalVariant | None = None
    reached: str = "nothing"
    gradient: bool | None = None
    also: list[Found] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    equals: list[tuple[Found, ...]] = field(default_factory=list)
    survivors: list[Variant] = field(default_factory=list)
    wrong: gradients.Wrong | None = None
    cut: str = ""                   # where patches are dropped, with many of them, if not at 1/P and at no constant

    @property
    def found(self) -> tuple[Found, ...]:
        return found_in(self.fine, self.pairs) + tuple(self.also)


class Reader:
    """Reads one loss, less a part of it that is known already (a weighted total, less the global loss)."""

    def __init__(self, box: Box, which: str, known=None):
        self.box, self.which, self.known = box, which, known

    def __call__(self, probe: Probe) -> Reading:
        reading = self.box.read(probe, self.which)
        if self.known is None or reading.error:
            return reading
        part = self.known(probe)
        grads = {name: g - np.reshape(part.grads.get(name, 0.0), np.shape(g)) for name, g in reading.grads.items()}
        return Reading(reading.value - part.value, grads)


def named(names):
    return [PROBES[name] for name in names]


def depends_on_theta(read, probe: Probe) -> bool:
    warmer = replace(probe, theta=probe.theta + 0.37, name=f"{probe.name}_warmer")
    a, b = read(probe).value, read(warmer).value
    return not abs(a - b) < (1e-12 if read.box.dtype() == "float64" else 1e-5) * max(1.0, abs(a))


def explain_fine(read: Reader) -> Explanation:
    """Eq. 6's settings that reproduce what is read.  Values first, gradients of what survives; see search."""
    out = Explanation()
    tol, grad_tol = read.box.tolerances()
    first, negatives = named(FIRST), "caption"
    values = [read(p).value for p in first]
    tol, grad_tol = read.box.tolerances()
    if error := read(first[0]).error:
        out.facts.append(say(read, "raises on one", error=error))
        first, negatives = named(POSITION), "caption"
    elif any(not math.isfinite(x) for x in values):
        out.facts.append(say(read, "never finite"))
        return out
    elif max(map(abs, values)) < 1e-9:
        first, negatives = named(POSITION), "position"
        if max(abs(read(p).value) for p in first) < 1e-9:
            out.facts.append(say(read, "always zero"))
            return out
    candidates = first_level(read, first, negatives, tol, out)
    if error and not candidates:
        candidates = first_level(read, first, "batch", tol, out)
    if not candidates:
        return out
    out.reached, out.survivors = "one sample", [c.fine for c in candidates]
    candidates = with_gradients(read, first[:2], candidates, grad_tol, out)
    second = [p for p in named(SECOND) if read(p).error is None]
    every = search.second_level(read, second, candidates, tol)
    if not every and read.box.dtype() == "float64":
        every = small_fill(read, second, candidates, tol)
    if not every:
        return out
    if any(read(p).finite and read(p).nan_gradient for p in second):
        every = [Candidate(replace(c.fine, inf_padding="gradient"), c.off) for c in every]
    kept, compared = search.with_gradient(read, second, every, grad_tol, options=("",), lacking=lacking(out))
    if compared and not kept:
        out.gradient = False
    every = kept or every
    out.reached, out.fine, out.survivors = "all", every[0].fine, [c.fine for c in every]
    settle_flat_rows(read, out, tol, grad_tol)
    settle_padding(read, out, tol)
    settle_strict(read, out)
    name_equals(out, every)
    settle_gradient(read, out, grad_tol)
    return out


def first_level(read, first, negatives, tol, out) -> list[Candidate]:
    """The search on single samples, its thresholds measured before."""
    box, which = read.box, read.which
    constant = not depends_on_theta(read, first[0])
    samples = min(2, len(first[0].v))
    threshold = find_threshold(box, which, samples=samples)
    tag = "" if samples == 1 else "_two"
    designed = [box.probes[name] for name in (f"threshold_{MANY}{tag}", f"threshold_{FEW}{tag}") if name in box.probes]
    designed = [p for p in designed if read(p).finite]
    usual: dict[Any, tuple[Any, ...]] = {"1/P": ("keys",), "none": ("none", "keys"), None: ("keys", "none")}
    tokens = usual.get(threshold.sigma, (threshold.sigma,))
    found: list[Candidate] = []

    def known(scaled):
        made = search.first_level(read, first + designed, tokens, "tokens", constant, tol, negatives, scaled=scaled)
        if not made and threshold.sigma in ("none", None):  # every patch has a gradient: patches may be the rows
            kinds = ("keys", "patches", "none")
            made = search.first_level(read, first, kinds, "patches", constant, tol, negatives, scaled=scaled)
        return made

    found = known((False,) if constant else (False, True))
    if not found and constant and samples == 1:           # before weights that share a temperature, which cost most
        found = beside(read, first, designed, tokens, constant, tol, negatives)
    if not found and constant:
        found = known((True,))
    if not found and threshold.sigma in ("none", None):
        swapped = find_threshold(box, which, swapped=True)
        if isinstance(swapped.sigma, float):
            found = search.first_level(read, first, (swapped.sigma,), "patches", constant, tol, negatives)
    if not found and threshold.sigma in ("none", None) and not constant:
        found = threshold_by_value(read, first, designed, tol)
    if not found and box.dtype() == "float64" and not constant:
        found = small_numbers(read, first + designed, (*tokens, "keys"), tol, negatives)
    if not found and threshold.sigma is None and designed:  # right on small batches, and not with 64 patches: sizes come later
        found = search.first_level(read, first, ("keys",), "tokens", constant, tol, negatives, scaled=(False,))
    if not found and samples == 1 and not constant:
        found = beside(read, first, designed, tokens, constant, tol, negatives)
    low, high = threshold.seen.get(MANY, (0.0, 1.0))
    if threshold.sigma is None and 0 < low < high < 1 and not low < 1 / MANY < high:
        out.cut = say(read, "threshold", low=float(low), high=float(high), many=MANY)
        if out.cut and (law := law_of(threshold.seen)):
            more = say(read, "threshold law", law=law[0], many=MANY, few=FEW, at=law[1](36))
            out.cut = " ".join(filter(None, [out.cut, more]))
        out.facts += [out.cut] if not found else []
    return found


def beside(read, first, designed, sigmas, constant, tol, negatives) -> list[Candidate]:
    """What people add to the loss, by itself and with an epsilon."""
    sigmas = tuple(dict.fromkeys((*sigmas, "keys")))
    return extras.explain(read, first + designed, sigmas, constant, tol, negatives)


def threshold_by_value(read, first, designed, tol) -> list[Candidate]:
    """A constant threshold that gradients do not show: try one between any two similarities of a probe, then narrow."""
    if not designed:
        designed = [threshold_probe(f"threshold_{n}", spread(n - 2, 1 / n)) for n in (MANY, FEW)]
        if not all(read(p).finite for p in designed):
            return []
    points = sorted({x for p in designed for x in p.v[0, 2:, 0]})
    edges = [0.0, *points, 1.0]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(edges)]
    kinds: list[Callable[[Variant], bool] | None] = [lambda o: o.weights == "sum" and o.minmax and not o.on_weights, None]
    if read(first[0]).grads:                              # only there what was dropped has a weight, and so a gradient
        kinds = [lambda o: o.weights == "softmax_zeros"]
    found: list[Candidate] = []
    for only in kinds:
        found = found or search.first_level(
            read, designed, tuple(middles), "tokens", False, tol, any_factor=False, only=only
        )
    for turn in range(8):
        if not found:
            return []
        sigma = found[0].fine.sigma
        if not isinstance(sigma, float):
            return []
        low, high = max(x for x in edges if x < sigma), min(x for x in edges if x > sigma)
        if (high - low) / high < 2e-8:
            break
        probe = threshold_probe(f"threshold_value_{turn}", np.linspace(low, high, MANY)[1:-1])
        edges = [low, *probe.v[0, 2:, 0], high]
        same = [c for c in found if c.fine.sigma == sigma]
        settings = [replace(c.fine, sigma=(a + b) / 2) for c in same for a, b in itertools.pairwise(edges)]
        off = relative(search.second_values(settings, probe), np.full(len(settings), read(probe).value))
        found = [Candidate(o, float(x)) for o, x in zip(settings, off) if x < tol]
    sigma = float(simplest(low, high))
    made = [replace(c.fine, sigma=sigma) for c in found]
    return [Candidate(o, 0.0) for o in dict.fromkeys(made) if all(value_off(read(p), p, o) < tol for p in first)]


def with_gradients(read, probes, candidates, tol, out) -> list[Candidate]:
    """Those whose gradient fits as well; where none does, those that lack one input's gradient and have the others'."""
    good, compared = search.with_gradient(read, probes, candidates, tol)
    out.gradient = True if compared else None
    if good or not compared:
        return good or candidates
    for name in ("theta", "t", "v"):
        given = [read(p).grads.get(name) for p in probes]
        if name == "theta" and None in [g if g is None else 0 for g in given]:
            continue
        if all(g is None or not np.any(g) for g in given):
            good, _ = search.with_gradient(read, probes, candidates, tol, lacking=(name,))
            if good:
                out.also.append(Found("edge.no_gradient", name))
                return good
    out.gradient = False
    return candidates


def lacking(out) -> tuple[str, ...]:
    return tuple(d.value for d in out.also if d.id == "edge.no_gradient")


def off(read, probe, o, skip=()) -> tuple[float, float | None]:
    """How far a reading is from a setting: loss, gradient."""
    made, reading = search.evaluated(probe, o), read(probe)
    wanted = {name: g for name, g in made.grads["fine"].items() if name not in skip}
    return loss_off(reading.value, made.losses["fine"]), gradient_off(reading.grads, wanted)


def settle_flat_rows(read, out, tol, grad_tol):
    """What happens where eq. 2 is 0/0: equal weights, c = 0, NaN, or a finite loss with a NaN gradient."""
    flat = [p for p in named(FLAT) if read(p).error is None]
    if not flat:
        return
    best = None
    for how in ("uniform", "zero", "nan", "nan_gradient", "nan_gradient_zero"):
        if out.fine.flat != "uniform" and how != out.fine.flat:
            continue
        offs = [off(read, p, replace(out.fine, flat=how), lacking(out)) for p in flat]
        if all(x < tol for x, _ in offs):
            right = all(g is None or g < grad_tol for _, g in offs)
            best = best or (how, right)
            if right:
                best = (how, True)
                break
    if best is None:
        out.facts.append(say(read, "flat", setting=out.fine))
        return
    out.fine = replace(out.fine, flat=best[0])
    if best[0] == "zero" and read(flat[0]).grads:
        sigma = 1 / MANY if out.fine.sigma == "keys" else out.fine.sigma
        if isinstance(sigma, float) and out.fine.rows == "tokens" and not out.fine.on_weights and not out.fine.eps:
            eps = find_epsilon(read.box, read.which, sigma, samples=2 if out.fine.negatives == "position" else 1)
            if eps:
                out.also.append(Found("minmax.epsilon", eps))


def settle_gradient(read, out, tol):
    """Gradients that are not those of the loss: whose, and what they are."""
    if out.gradient is None:
        return
    wrong = gradients.Wrong()
    if not out.gradient:
        wrong = gradients.explain(read, out.fine, tol, lacking(out))
    if not lacking(out) and not out.fine.flat.startswith("nan") and not wrong.place:
        gradients.on_flat_rows(read, out.fine, tol, wrong, named(FLAT))
    if wrong.found or wrong.place:
        out.wrong, out.gradient = wrong, wrong.explained
        out.also += wrong.found


def settle_padding(read, out, tol):
    """Zeros at padding, and captions of padding alone: what is NaN or infinite there and nowhere else."""
    if out.fine.constant:                                 # added once, or for every token: a caption without any tells
        forms = [replace(out.fine, constant_rows=rows) for rows in (False, True)]
        alone = [p for p in named(ALONE) if read(p).finite]
        out.fine = min(forms, key=lambda o: max((off(read, p, o)[0] for p in alone), default=0.0))
    zero = [(p, read(p), off(read, p, out.fine)) for p in named(ZERO) if not read(p).error]
    if not out.fine.flat.startswith("nan") and not out.fine.inf_padding and not out.fine.nan_rows:
        if any(not r.finite for _, r, (x, _) in zero if x == math.inf):
            out.also.append(Found("edge.zero_padding", way="loss"))
        elif any(r.nan_gradient for _, r, (_, g) in zero if g == math.inf):
            out.also.append(Found("edge.zero_padding", way="gradient"))
    alone = [(p, read(p), off(read, p, out.fine)) for p in named(ALONE)]
    if out.fine.inf_padding or out.fine.nan_rows:
        return
    if any(r.error for _, r, _ in alone):
        out.also.append(Found("edge.all_padding", "raises"))
    elif any(not r.finite or r.nan_gradient for _, r, o in alone if math.inf in o):
        out.also.append(Found("edge.all_padding", "poison"))
    elif out.fine.reduction in ("sample", "token") and any(x > tol for _, _, (x, _) in alone):
        out.also.append(Found("edge.all_padding", "shifts"))


def settle_strict(read, out):
    """> or >=, on a similarity that is the threshold exactly."""
    o = out.fine
    if o.rows != "tokens" or o.on_weights or o.weights not in ("sum", "mean") or o.sigma == "none" or o.flat == "zero":
        return
    sigma = 1 / 4 if o.sigma == "keys" else float(o.sigma)
    samples = 2 if o.negatives == "position" else 1
    if not drops(read, o, knife_probe(sigma, samples)):
        return
    if drops(read, o, knife_probe(sigma, samples, lengthen=2.0**40)):
        out.fine = replace(o, strict=True)
    else:                                                 # where a range is large, a small number beside it is rounded away
        out.also.append(Found("threshold.rounding"))


def drops(read, o, probe) -> bool:
    """Whether what is exactly sigma is dropped."""
    reading = read(probe)
    if not reading.finite:
        return False
    if "v" in reading.grads and np.isfinite(reading.grads["v"]).all():
        size = np.abs(np.reshape(reading.grads["v"], probe.v.shape)[0]).max(-1)
        return bool(size[2] <= 1e-13 * size.max() < size[3])
    loose, strict = (off(read, probe, replace(o, strict=how))[0] for how in (False, True))
    return strict < 1e-6 < loose


def bad_ids(o: Variant) -> set[str]:
    return {d.id for d in found_in(o) if not DEVIATIONS[d.id].harmless}


def name_equals(out, every):
    """Other sets of as few deviations that the probes do not tell apart; detaching s or a is one and the same."""
    mine = out.fine
    first = cost(found_in(mine))[0]
    for c in every[1:6]:
        other = replace(c.fine, flat=mine.flat, strict=mine.strict)
        named_else = bad_ids(other) != bad_ids(mine)
        if cost(found_in(other))[0] == first and named_else and same_losses(mine, other):
            out.equals.append(found_in(other))
    if mine.detach == "similarity":
        out.equals.append(found_in(replace(mine, detach="weights")))
