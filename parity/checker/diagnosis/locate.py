"""Where does a loss that nothing explains leave the paper?  The simplest family of probes on which it does, tells the stage.

Families come in an order in which each lets one more stage play (designs).  A family agrees if any setting of the
switches gives its values, so that known deviations beside the unknown one do not mislead.
"""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from parity.checker.diagnosis import extras, search, variants
from parity.checker.diagnosis.clauses import say
from parity.checker.diagnosis.designs import ANGLES, EVEN, LENGTHS, MIXTURES, PAIRS, PARALLEL, SPARE, THETA, UNEVEN
from parity.checker.diagnosis.deviations import STAGES
from parity.checker.diagnosis.explain import SECOND, Explanation, Reader, depends_on_theta, named
from parity.checker.diagnosis.invariance import apart_from_others, left_out
from parity.checker.diagnosis.matching import Candidate
from parity.checker.diagnosis.switches import Variant
from parity.checker.diagnosis.temperatures import root
from parity.checker.probes import PROBES

FAMILIES = (("norm", LENGTHS), ("logits", ANGLES), ("grouping", EVEN), ("reduction", UNEVEN))


@dataclass(frozen=True)
class Place:
    """stage, the probe that shows it, and what was measured there in a sentence that has passed the door (clauses).

    open: other stages at which it may be too, by what is known
    """

    stage: str
    probe: str
    words: str = ""
    open: tuple[str, ...] = ()


def locate(read: Reader, how: Explanation) -> Place:
    """The stage at which a fine-grained loss leaves the paper, from values alone."""
    tol, _ = read.box.tolerances()
    if how.reached == "nothing":
        return one_sample(read, max(tol, 1e-7))           # an epsilon beside the unknown must not mislead
    if how.reached == "one sample":
        return batches(read, how, tol)
    return Place("edge", "padded")


def fits(read, probes, tau, tol, only=None, **tail) -> list[Variant]:
    """Settings that give the values of these probes.  tau: False: theta's, True: a number to be found, or the number.

    tail: what is known of the steps after the groups, as fields of Variant
    """
    for rows in ("tokens", "patches"):
        found = search.first_level(read, probes, ("keys", "none"), rows, tau, tol, only=only, **tail)
        if found:
            return [c.fine for c in found]
    return []


def tail_of(o: Variant) -> dict:
    """What stands after the groups, beside temperature and factor."""
    return {name: getattr(o, name) for name in extras.TAIL if name not in ("tau", "factor")}


def as_in_paper(o: Variant) -> bool:
    """Min-max, threshold and sum; any similarity, any values."""
    return o.minmax and not o.on_weights and o.weights == "sum"


def one_sample(read, tol) -> Place:
    tau: float | bool = not depends_on_theta(read, PROBES["single"])
    asked = list(PAIRS)
    if any(not read(p).finite for p in asked):
        return Place("similarity", asked[0].name, "", STAGES[1:STAGES.index("loss") + 1])  # nothing tells it
    if all(abs(read(p).value) < 1e-12 for p in asked):   # a factor of 0 would explain all of it
        return Place("loss", asked[0].name, say(read, "zero pairs"), ("logits",))
    settings = fits(read, asked, tau, tol, only=lambda o: o == Variant()) or fits(read, asked, tau, tol)
    if settings:
        tau = settings[0].tau or False                    # known from here on
    tail = {}
    if not settings:                                      # a number or a term of its own after the groups?
        after = next(iter(extras.tails(read, list(extras.ONE_HOT), tol)), None)
        if after is not None:
            tail, tau = tail_of(after), after.tau or tau
            settings = fits(read, asked, tau, tol, **tail)
    apart = bool(fits(read, PARALLEL, tau, tol, **tail))  # what follows the groups is right by itself
    if not settings:
        if (place := one_sided(read, tol)) is not None:
            return place
        place = after_logits(read, tol)
        return before_groups(read, tol, tau) if apart and place.stage in ("grouping", "norm", "logits") else place
    asked += SPARE
    if not fits(read, asked, tau, tol, **tail):
        return spare_patches(read, tol)
    for stage, family in FAMILIES:
        if apart and stage in ("norm", "logits"):
            continue
        asked += family
        before, settings = settings, fits(read, asked, tau, tol, **tail)
        if not settings:
            kind = stage
            if stage == "reduction" and fits(read, [*asked[:-len(family)], *UNEVEN[:2]], tau, tol, **tail):
                kind = "reduction lengths"                # of two lengths of embeddings, not of two losses
            return Place(stage, family[-1].name, say(read, kind, stage=kind, settings=before))
    return alignment(read, settings[0], tol)


def before_groups(read, tol, tau) -> Place:
    """Right where all patches point one way, wrong where each token has its own: do weights hang on a token's length?"""
    one = PAIRS[1]
    longer = replace(one, t=one.t * np.array([1.0, 2.0, 0.5, 1.5, 3.0])[:, None], name="pairs_5_longer_tokens")
    if abs(read(one).value - read(longer).value) > 1e3 * tol:
        return Place("minmax", longer.name, say(read, "token length"))
    if abs(read(SPARE[0]).value - read(one).value) > 1e3 * tol:
        return Place("grouping", SPARE[0].name, say(read, "spare"))
    return Place("weights", one.name, say(read, "parallel", tau=tau), ("similarity", "minmax", "threshold", "grouping"))


def after_logits(read, tol) -> Place:
    """Cross-entropy, its logits, or how rows are summed: n patches resemble n tokens, all cosines are 0 or 1."""
    small, middle, large, warmer = PAIRS
    if few := left_out(read, large):
        return Place("logits", large.name, say(read, "left out", many=large.t.shape[1], few=few))
    y = {p.name: read(p).value for p in PAIRS}
    ratio = {p.name: y[p.name] / of(p.t.shape[1], math.exp(p.theta)) for p in PAIRS}
    if ratio[warmer.name] and abs(ratio[middle.name] / ratio[warmer.name] - 1) < 1e3 * tol:
        return Place("reduction", large.name, say(read, "factor of count"))

    def miss(gap):
        return math.log(of(3, gap) / of(5, gap) * y[middle.name] / y[small.name])

    no_turn = max(abs(read(p).value - y[middle.name]) for p in LENGTHS[:2]) < 1e3 * tol
    grid = np.linspace(-20, 40, 600)
    for low, high in itertools.pairwise(grid):
        if y[small.name] > 0 < y[middle.name] and miss(low) * miss(high) <= 0:
            gap = root(miss, low, high) or low
            factor = y[small.name] / of(3, gap)
            if abs(factor * of(7, gap) / y[large.name] - 1) < 1e4 * tol:
                if not no_turn:
                    return Place("norm", LENGTHS[0].name, say(read, "turning"))
                return Place("logits", middle.name, say(read, "gap", gap=gap, factor=factor, scale=math.exp(THETA)))
    gaps = {p.name: gap_of(p.t.shape[1], y[p.name]) / math.exp(p.theta) for p in PAIRS}
    if abs(gaps[middle.name] - gaps[warmer.name]) < 1e3 * tol:
        stage = "grouping" if no_turn else "norm"
        return Place(stage, middle.name, say(read, "gap in scale", gap=gaps[middle.name]))
    return Place("loss", middle.name, say(read, "no gap"), ("logits", "reduction"))


def one_sided(read, tol) -> Place | None:
    """Does one direction have the paper's logits, and the other its own?  n patches resemble n tokens, as in after_logits."""
    scale = math.exp(THETA)
    small, middle, large, _ = PAIRS
    gaps = [gap_of(p.t.shape[1], 2 * read(p).value - of(p.t.shape[1], scale)) for p in (small, middle, large)]
    if not max(gaps) - min(gaps) < 1e4 * tol * scale or abs(gaps[0] - scale) < 1e4 * tol * scale:  # NaN is no gap
        return None
    words = say(read, "two gaps", gap=gaps[0], scale=scale)
    return Place("logits", middle.name, words) if words else None


def gap_of(n, y) -> float:
    """The inverse of `of`; NaN where there is none."""
    x = math.expm1(y) / (n - 1) if y < 700 else math.inf
    return -math.log(x) if 0 < x < math.inf else math.nan


def of(n: int, gap: float) -> float:
    """Cross-entropy of n classes, one of which is ahead by `gap`."""
    return math.log1p((n - 1) * math.exp(-gap))


def spare_patches(read, tol) -> Place:
    """Patches that resemble no token change something: by a factor, or more than that?"""
    with_them = [read(p).value for p in SPARE]
    without = [read(PAIRS[1]).value, read(PAIRS[3]).value]
    if abs(with_them[0] / without[0] * without[1] / with_them[1] - 1) < 1e3 * tol:
        return Place("reduction", SPARE[0].name, say(read, "spare factor"))
    return Place("minmax", SPARE[0].name, say(read, "spare"))


def alignment(read, o: Variant, tol) -> Place:
    """Which of eqs. 2-4: measure the weight of one patch against another's, and see what it depends on."""
    designs = [design[0] for design in MIXTURES.values()]
    tail = tail_of(o)
    tau = o.tau or False
    if right := fits(read, designs, tau, tol, only=as_in_paper, **tail):
        if both := fits(read, [PROBES["unit_single"], *designs], tau, tol, only=as_in_paper, **tail):
            return Place("similarity", "single", say(read, "unit alone", settings=both))
        return Place("threshold", "unit_single", say(read, "mixtures", settings=right))
    weight = {name: measured(read, o, *design) for name, design in MIXTURES.items()}
    plain = weight["plain"]
    good = plain is not None and abs(plain - 0.6) < 1e-4

    def again(read, probe, a, b):
        return measured(read, o, probe, a, b)

    def differs(name):
        return (weight[name] is None) != (plain is None) or (plain is not None and abs(weight[name] - plain) > 1e-4)

    def place(stage, name=""):
        probe = MIXTURES[name or "plain"][0].name
        if plain is None:
            return Place(stage, probe)
        if name and weight[name] is not None:
            other = f"{weight[name]:.4g}"
            return Place(stage, probe, say(read, "weight and", weight=plain, measured=again, other=other, name=name))
        return Place(stage, probe, say(read, "weight", weight=plain, measured=again))

    if differs("another token's similarities"):
        return place("minmax", "another token's similarities")
    for name in ("all similarities raised", "a longer token"):
        if differs(name):
            return place("minmax" if good or differs("two of them") else "similarity", name)
    if good and differs("similarities below zero"):
        return place("similarity", "similarities below zero")
    less = weight["less alike"]
    if good and not (less is not None and abs(less - 0.45) < 1e-4):
        return place("threshold")
    if differs("two of them"):
        return place("threshold" if good else "minmax", "two of them")
    if differs("more patches"):
        return place("threshold", "more patches")
    return place("weights")


def measured(read, o, probe, a, b) -> float | None:
    """The weight of b for a's 1 that gives the loss; None where none in [-0.3, 3] does."""
    x = variants.tensors(probe)
    scale = torch.exp(x["theta"]) if o.tau is None else torch.tensor(1 / o.tau, dtype=torch.float64)
    copies = int((probe.v[0] == b).all(-1).sum())
    own = torch.tensor(probe.v[0, 1 + copies])

    def loss(weight):
        c = torch.stack([torch.tensor(a + copies * weight * b), own])[None]
        vt, tv, _ = variants.per_row(variants.cosines(c, x["v"], x["t"], x["mask"], o), x["mask"], probe.v.shape[1], scale, o)
        return float(variants.reduce(vt, tv, x["mask"], probe.v.shape[1], o))

    y = read(probe).value
    if not math.isfinite(y):
        return None
    grid = np.linspace(-0.3, 3, 34)
    miss = [loss(w) - y for w in grid]
    roots = [
        root(lambda w: loss(w) - y, grid[k], grid[k + 1]) for k in range(len(grid) - 1) if miss[k] * miss[k + 1] <= 0
    ]
    roots = [r for r in roots if r is not None]
    return min(roots, key=lambda r: abs(r - 0.6)) if roots else None


def batches(read, how, tol) -> Place:
    """One sample without padding is explained: is it padding, other captions, or how captions are averaged?"""
    survivors = [Candidate(o, 0.0) for o in how.survivors]

    def fit(*names):
        probes = [p for p in named(names) if read(p).error is None]
        return search.second_level(read, probes, survivors, tol)

    def content_matters(one, two):
        """Is it more than a factor that hangs on the lengths?"""
        o = how.survivors[0]
        a, b = (read(p).value / search.evaluated(p, o).losses["fine"] for p in named((one, two)))
        return not abs(a / b - 1) < 1e3 * tol

    settings = how.survivors
    if not fit("single_padded", "unit_single_padded"):
        if content_matters("single_padded", "unit_single_padded"):
            return Place("logits", "single_padded", say(read, "one caption", settings=settings))
        return Place("reduction", "single_padded", say(read, "one caption factor", settings=settings))
    if not fit("unpadded", "unit_unpadded"):
        if apart_from_others(read, PROBES["unpadded"], tol):
            return Place("reduction", "unpadded", say(read, "samples apart"))
        if content_matters("unpadded", "unit_unpadded"):
            return Place("logits", "unpadded", say(read, "captions", settings=settings))
        return Place("reduction", "unpadded", say(read, "captions factor", settings=settings))
    return Place("reduction", SECOND[0], say(read, "equal lengths", settings=settings))
