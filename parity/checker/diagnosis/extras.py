"""What people add to the loss beside the paper's steps: constants, smoothed labels, other contrasts, temperatures of their own.

Asked only where no setting of the known switches reproduces a single sample; each is then tried with all of them.
"""

import math
from dataclasses import replace

import numpy as np

from parity.checker.diagnosis import search
from parity.checker.diagnosis.asking import simplest
from parity.checker.diagnosis.designs import ANGLES, LENGTHS, PAIRS, PARALLEL, parallel
from parity.checker.diagnosis.epsilons import with_epsilon
from parity.checker.diagnosis.fitting import (
    BIAS,
    CONSTANT,
    FACTOR,
    GAIN,
    LOG_SCALE,
    LOOSE,
    NOTHING,
    OUTSIDE,
    OWN_TAU,
    PLAIN,
    SMOOTHING,
    TAU,
    fit,
)  # fmt: skip
from parity.checker.diagnosis.matching import Candidate, best_first
from parity.checker.diagnosis.numbers import SOFTMAX_TAUS, cut_of_softmax
from parity.checker.diagnosis.switches import Variant
from parity.checker.probes import PROBES, WIDTH, Probe

CONTRASTS = [{"contrast": "decoupled"}] + [
    {"special": which, "special_rows": rows} for which in ("both", "first", "last") for rows in (False, True)
]
SIGMOIDS = ("sigmoid", "sigmoid_mean")
# Each token has one patch: c is known.  All patches point one way: its direction is.
ONE_HOT = (ANGLES[1], PAIRS[3], LENGTHS[2], ANGLES[0], ANGLES[2], ANGLES[3], PAIRS[2])
ONE_WAY = (*PARALLEL, parallel("parallel_warm", 4, True, 0.75), parallel("parallel_cold", 5, False, 1.3))
TAIL = (
    "tau", "gain", "factor", "constant", "constant_of", "smoothing", "smooth_others", "special", "special_rows", "contrast",
    "bias",
)  # fmt: skip


def explain(read, probes, sigmas, constant, tol, negatives="caption") -> list[Candidate]:
    """Settings with something of the kind that give what is read on `probes`.  constant: theta does not show.

    What follows the groups is found first, where they are known whatever the weights; then the weights.
    """
    front = search.fronts(tuple(sigmas), "tokens")
    near: list[Candidate] = []
    for family in (ONE_HOT, ONE_WAY):
        for tail in tails(read, list(family), tol):
            fields = {name: getattr(tail, name) for name in TAIL}
            for weights in (known_weights, softmax_weights, cut_softmax):
                found = weights(read, probes, with_fields(front, **fields), tol, negatives, family is ONE_WAY)
                exact = [c for c in found if c.off < tol]
                if exact:
                    return widths(read, best_first(exact), tol)
                near += found
            if made := with_epsilon(read, probes, widths(read, best_first(near), LOOSE), tol):
                return made
            near = []
    found = fit(read, probes, front, tol, NOTHING, (CONSTANT, LOG_SCALE, SMOOTHING), negatives) if not constant else []
    return widths(read, best_first([c for c in found if c.off < tol]), tol)


def with_fields(front, **fields):
    return [replace(o, **fields) for o in front]


def tails(read, probes, tol) -> list[Variant]:
    """What follows the groups, on probes where these are known: the simplest kind that gives what is read."""
    number = TAU if abs(read(PAIRS[1]).value - read(PAIRS[3]).value) < 1e-12 else GAIN  # these differ in theta alone
    plain = [Variant()]
    found: list[Candidate] = []

    def ask(front, inside, outside):
        return [c for c in fit(read, probes, front, tol, inside, outside) if c.off < max(tol, 1e-7)]

    if number is GAIN:
        found = ask(plain, NOTHING, OUTSIDE)
    found = found or ask(plain, number, OUTSIDE)
    for fields in CONTRASTS:
        if not found and number is GAIN:
            found = ask(with_fields(plain, **fields), NOTHING, OUTSIDE)
    for fields in CONTRASTS:
        found = found or ask(with_fields(plain, **fields), number, (PLAIN,))
    for kind in SIGMOIDS:
        some = with_fields(plain, contrast=kind)
        if not found and number is GAIN:
            found = ask(some, BIAS, (PLAIN, FACTOR))
        for fields in () if found else sigmoid_by_pairs(read, kind):
            found += ask(with_fields(some, **fields), NOTHING, (PLAIN, FACTOR))
    return list(dict.fromkeys(replace(c.fine, no_norm="", direction="both") for c in best_first(found)))[:4]


def known_weights(read, probes, front, tol, negatives, softmax):
    return fit(read, probes, front, tol, NOTHING, (PLAIN,), negatives)


def softmax_weights(read, probes, front, tol, negatives, softmax):
    """Softmax weights with a temperature of their own."""
    if not softmax:
        return []
    some = [o for o in front if o.weights.startswith("softmax") and not o.scaled]
    return fit(read, probes, some, tol, OWN_TAU, (PLAIN,), negatives)


def cut_softmax(read, probes, front, tol, negatives, softmax):
    """A softmax over patches, what is below a threshold of it dropped."""
    base = [replace(o, weights="softmax_cut", sigma="keys") for o in front if o.weights == "softmax"]
    if not softmax or not base:
        return []
    own = [o for o in base if not o.scaled]
    usual = [replace(o, own_tau=tau) for o in own for tau in (*SOFTMAX_TAUS[1:], "sqrt(D)")]
    found = fit(read, probes, base + usual, tol, NOTHING, (PLAIN,), negatives)
    found = found or fit(read, probes, own, tol, OWN_TAU, (PLAIN,), negatives)
    if found or front[0].tau:
        return found
    sigmas = cut_of_softmax(read.box, read.which)
    some = [replace(o, sigma=sigma, own_tau=None if tau == 1 else tau)
            for o in base for tau, sigma in sigmas.items() if tau == 1 or not o.scaled]
    probes = [p for p in probes if not p.edge]            # with many patches none may reach it, and then codes differ
    return fit(read, probes, some, tol, NOTHING, (PLAIN,), negatives)


def sigmoid_by_pairs(read, kind):
    """Bias and gain, or temperature, of sigmoid pairs: with cosines of 0 and 1 the loss is A + (n - 1) B."""
    three, five, seven, warmer = (read(p).value * (p.t.shape[1] if kind == "sigmoid_mean" else 1.0) for p in PAIRS)
    if not np.isfinite([three, five, seven, warmer]).all():
        return []

    def solved(low, high, theta):
        b = (high - low) / 2
        a = low - 2 * b
        if not (a > 0 < b and abs(a) < 500 and b < 500):
            return None
        bias = math.log(math.expm1(b))
        return bias, -math.log(math.expm1(a)) - bias

    one = solved(three, five, PAIRS[0].theta)
    if one is None or abs(seven - (three + (five - three) * 2)) > 1e-6 * abs(seven):
        return []
    bias, gap = (float(simplest(x - 1e-6 * abs(x), x + 1e-6 * abs(x))) if x else 0.0 for x in one)
    tau = float(simplest((1 - 1e-6) / gap, (1 + 1e-6) / gap)) if gap else math.inf
    gain = float(simplest(*(gap / math.exp(PAIRS[0].theta) * (1 + x) for x in (-1e-6, 1e-6))))
    if abs(warmer - five) < 1e-9 * abs(five):
        return [{"tau": tau, "bias": bias}]
    return [{"gain": gain, "bias": bias}]


def wider(probe: Probe) -> Probe:
    """The same in a space of 25 dimensions: only what hangs on D itself sees a difference."""
    def pad(x):
        return np.concatenate([x, np.zeros((*x.shape[:-1], 25 - WIDTH))], -1)

    wide = {name: pad(getattr(probe, name)) for name in ("v", "t", "v_bar", "t_bar")}
    return replace(probe, name=f"{probe.name}_wider", **wide)


def widths(read, found, tol) -> list[Candidate]:
    """Is it 4, or the root of 16?  Asked in 25 dimensions, where the box takes them."""
    root = math.sqrt(WIDTH)
    out = []
    for c in found:
        forms = [c.fine]
        if isinstance(c.fine.own_tau, float) and abs(c.fine.own_tau / root - 1) < 1e-6:
            forms.append(replace(c.fine, own_tau="sqrt(D)"))
        if isinstance(c.fine.gain, float) and abs(c.fine.gain * root - 1) < 1e-6:
            forms += [replace(o, gain="1/sqrt(D)") for o in forms]
        probe = wider(PROBES["single"])
        if len(forms) > 1 and read(probe).error is None:
            value = read(probe).value
            forms = [o for o in forms
                     if abs(search.evaluated(probe, o).losses["fine"] - value) < max(tol, 1e-9) * max(abs(value), 0.05)]
        out += [Candidate(o, c.off) for o in forms[:1]]
    return out
