"""What people add to the loss beside the paper's steps: constants, smoothed labels, other contrasts, temperatures of their own.

Asked only where no setting of the known switches reproduces a single sample; each is then tried with all of them.
"""

import math
from dataclasses import replace

import numpy as np

from parity.checker.diagnosis import search
from parity.checker.diagnosis.asking import simplest
from parity.checker.diagnosis.designs import PAIRS, PARALLEL, parallel
from parity.checker.diagnosis.epsilons import with_epsilon
from parity.checker.diagnosis.fitting import (
    BIAS, CONSTANT, FACTOR, GAIN, LOG_SCALE, LOOSE, NOTHING, OUTSIDE, OWN_TAU, PLAIN, SMOOTH_OTHERS, SMOOTHING, TAU, fit,
)  # fmt: skip
from parity.checker.diagnosis.matching import Candidate, best_first
from parity.checker.diagnosis.numbers import cut_of_softmax
from parity.checker.diagnosis.switches import Variant
from parity.checker.probes import PROBES, WIDTH, Probe

TAILS = [{"contrast": "decoupled"}] + [
    {"special": which, "special_rows": rows} for which in ("both", "first", "last") for rows in (False, True)
]
MORE_PARALLEL = (*PARALLEL, parallel("parallel_warm", 4, True, 0.75), parallel("parallel_cold", 5, False, 1.3))
SIGMOIDS = ("sigmoid", "sigmoid_mean")


def explain(read, probes, sigmas, constant, tol, negatives="caption") -> list[Candidate]:
    """Settings with something of the kind that give what is read on `probes`.  constant: theta does not show."""
    front = [o for o in search.fronts(tuple(sigmas), "tokens") if not (constant and o.scaled)]
    steps = (by_temperature, sigmoids, two_numbers) if constant else (outside, cut_softmax, in_logits, of_softmax, sigmoids, two_numbers)
    near = []
    for step in steps:
        found = step(read, probes, front, tol, negatives)
        exact = [c for c in found if c.off < tol]
        if exact:
            return widths(read, best_first(exact), tol)
        close = [c for c in found if c.off < 1e-5]        # a usual epsilon moves a loss by no more
        if made := with_epsilon(read, probes, widths(read, best_first(close), LOOSE), tol):
            return made
        near += [c for c in found if c.off >= 1e-5]
    return with_epsilon(read, probes, widths(read, best_first(near), LOOSE), tol)


def with_fields(front, **fields):
    return [replace(o, **fields) for o in front]


def outside(read, probes, front, tol, negatives):
    """A constant, a smoothed label, decoupled denominators, special tokens left out."""
    found = fit(read, probes, front, tol, NOTHING, (CONSTANT, LOG_SCALE, SMOOTHING, SMOOTH_OTHERS), negatives)
    for fields in () if found else TAILS:
        found = found or fit(read, probes, with_fields(front, **fields), tol, NOTHING, OUTSIDE, negatives)
    return found


def in_logits(read, probes, front, tol, negatives):
    """A factor beside a learned scale, whatever stands outside."""
    found = fit(read, probes, front, tol, GAIN, OUTSIDE, negatives)
    plain = [o for o in front if not o.scaled and o.weights == "sum"]
    for fields in () if found else TAILS:
        found = found or fit(read, probes, with_fields(plain, **fields), tol, GAIN, (PLAIN,), negatives)
    return found


def by_temperature(read, probes, front, tol, negatives):
    """A temperature that is a number, and one of these."""
    found = fit(read, probes, front, tol, TAU, (CONSTANT, SMOOTHING, SMOOTH_OTHERS), negatives)
    plain = [o for o in front if o.weights == "sum"]
    for fields in () if found else TAILS:
        found = found or fit(read, probes, with_fields(plain, **fields), tol, TAU, (PLAIN,), negatives)
    return found


def softmaxes(front):
    return [o for o in front if o.weights.startswith("softmax") and not o.scaled]


def of_softmax(read, probes, front, tol, negatives):
    """Softmax weights with a temperature of their own."""
    return fit(read, probes, softmaxes(front), tol, OWN_TAU, (PLAIN, FACTOR, CONSTANT, LOG_SCALE, SMOOTHING), negatives)


def sigmoids(read, probes, front, tol, negatives):
    found = []
    constant = abs(read(PAIRS[1]).value - read(PAIRS[3]).value) < 1e-12  # these differ in theta alone
    for kind in SIGMOIDS:
        some = with_fields(front, contrast=kind)
        if not constant:
            found += fit(read, probes, some, tol, BIAS, (PLAIN, FACTOR), negatives)
        for fields in sigmoid_by_pairs(read, kind):
            found += fit(read, probes, with_fields(some, **fields), tol, NOTHING, (PLAIN, FACTOR), negatives)
        if found:
            break
    return found


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


def cut_softmax(read, probes, front, tol, negatives):
    """A softmax over patches, what is below a threshold of it dropped."""
    base = [replace(o, weights="softmax_cut", sigma="keys") for o in front if o.weights == "softmax"]
    found = fit(read, probes, base, tol, NOTHING, (PLAIN, FACTOR), negatives)
    found = found or fit(read, probes, [o for o in base if not o.scaled], tol, OWN_TAU, (PLAIN,), negatives)
    if found:
        return found
    sigmas = cut_of_softmax(read.box, read.which)
    some = [replace(o, sigma=sigma, own_tau=None if tau == 1 else tau)
            for o in base for tau, sigma in sigmas.items() if tau == 1 or not o.scaled]
    return fit(read, probes, some, tol, NOTHING, (PLAIN, FACTOR), negatives)


def two_numbers(read, probes, front, tol, negatives):
    """Logits with a number of their own beside weights with theirs: parallel patches keep the weights out of play."""
    found = []
    for c in tails(read, tol):
        tail = {name: getattr(c.fine, name) for name in
                ("no_norm", "direction", "tau", "gain", "factor", "constant", "constant_of", "smoothing", "smooth_others")}
        some = [o for o in softmaxes(front) if o.weights != "softmax_cut"]
        some = with_fields(some, **{k: x for k, x in tail.items() if k not in ("no_norm", "direction", "factor")})
        found += fit(read, probes, some, tol, OWN_TAU, (PLAIN, FACTOR), negatives)
        if any(c.off < tol for c in found):
            break
    return found


def tails(read, tol) -> list[Candidate]:
    """What follows the groups, by probes on which all patches are parallel."""
    probes = list(MORE_PARALLEL)
    inside = TAU if abs(read(PAIRS[1]).value - read(PAIRS[3]).value) < 1e-12 else GAIN
    return best_first(fit(read, probes, [Variant()], tol, inside, (PLAIN, FACTOR)))


def wider(probe: Probe) -> Probe:
    """The same in a space of 25 dimensions: only what hangs on D itself sees a difference."""
    def pad(x):
        return np.concatenate([x, np.zeros((*x.shape[:-1], 25 - WIDTH))], -1)

    return replace(probe, name=f"{probe.name}_wider", v=pad(probe.v), t=pad(probe.t), v_bar=pad(probe.v_bar), t_bar=pad(probe.t_bar))


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
