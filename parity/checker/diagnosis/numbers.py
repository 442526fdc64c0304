"""Numbers that a black box holds: its threshold, by which patches get no gradient; its epsilon, by rows of tiny range.

Nothing here knows the rest of the box: whatever follows eq. 3, a patch that was dropped has a gradient of exactly 0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from parity.checker.diagnosis.asking import Box, simplest
from parity.checker.probes import threshold_probe

MANY = 64                                                 # patches of a probe that looks for the threshold
FEW = 16


@dataclass
class Threshold:
    """What the probes say.  sigma: "1/P" | "none" | a number | None: something else; seen: P -> interval that holds it."""

    sigma: str | float | None = None
    swapped: bool = False                                 # patches are rows, tokens keys
    samples: int = 1
    seen: dict[int, tuple[float, float]] = field(default_factory=dict)
    note: str = ""


def kept(box: Box, which: str, name: str, wanted, **options) -> np.ndarray | None:
    """Which of the wanted similarities pass: (n,) bool; None where the box gives no gradient."""
    reading = box.read(threshold_probe(name, wanted, **options), which)
    grads = reading.grads.get("t" if options.get("swapped") else "v")
    if grads is None or not reading.finite or not np.isfinite(grads).all():
        return None
    size = np.abs(np.reshape(grads, (options.get("samples", 1), -1, grads.shape[-1]))[0]).max(-1)
    return size[2:] > 1e-13 * max(size.max(), 1e-30)


def spread(n: int, sharp: float) -> np.ndarray:
    """n similarities between 0 and 1, dense near 0, two of them just below and above `sharp`."""
    low = np.geomspace(3e-6, 0.02, n // 3)
    high = np.linspace(0.03, 0.97, n - 2 - n // 3)
    return np.sort(np.concatenate([low, high, [sharp * (1 - 1e-3), sharp * (1 + 1e-3)]]))


def find_threshold(box: Box, which: str, swapped: bool = False, samples: int = 1) -> Threshold:
    """The threshold at P = 64 and P = 16: 1/P, a constant, none, or neither (then `seen` has what was measured)."""
    found = Threshold(swapped=swapped, samples=samples)
    tag = "_swapped" if swapped else "_two" if samples == 2 else ""
    for n in (MANY, FEW):
        wanted = spread(n - 2, 1 / n)
        passed = kept(box, which, f"threshold_{n}{tag}", wanted, swapped=swapped, samples=samples)
        if passed is None:
            error = box.read(box.probes[f"threshold_{n}{tag}"], which).error
            found.note = f"{n} patches raise {error}" if error else "not seen by gradients, there are none for patches"
            return found
        if passed.all():
            found.seen[n] = (0.0, wanted[0])
        elif not passed.any():
            found.seen[n] = (wanted[-1], 1.0)
        else:
            edge = int(passed.argmax())
            if not passed[edge:].all():
                found.note = f"with {n} patches, what passes is no matter of being above a threshold"
                return found
            found.seen[n] = (wanted[edge - 1], wanted[edge])
    if all(low < 1 / n < high and high - low < 0.01 / n for n, (low, high) in found.seen.items()):
        found.sigma = "1/P"
    elif all(low == 0 for low, _ in found.seen.values()):
        found.sigma = "none"
    elif found.seen[MANY][0] > 0 and found.seen[MANY][1] < 1:
        narrow(box, which, found, tag)
    return found


def narrow(box, which, found, tag):
    """Cut the interval at P = 64 into 61 parts again and again; then see whether P = 16 has the same threshold."""
    low, high = found.seen[MANY]
    fine = 3e-6 if box.dtype() == "float32" else 2e-8
    for turn in range(8):
        if (high - low) / high < fine:
            break
        wanted = np.linspace(low, high, MANY)[1:-1]
        passed = kept(box, which, f"threshold_{MANY}{tag}_{turn}", wanted, swapped=found.swapped, samples=found.samples)
        if passed is None or (passed.any() and not passed[passed.argmax():].all()):
            found.note = "what passes depends on the other patches"
            return
        edges = np.concatenate([[low], wanted, [high]])
        first = 1 + int(passed.argmax()) if passed.any() else len(edges) - 1
        low, high = edges[first - 1], edges[first]
    found.seen[MANY] = (low, high)
    sigma = simplest(low, high)
    wanted = np.sort(np.concatenate([[sigma * (1 - 1e-5), sigma * (1 + 1e-5)], np.linspace(0.04, 0.96, FEW - 4)]))
    passed = kept(box, which, f"threshold_{FEW}{tag}_same", wanted, swapped=found.swapped, samples=found.samples)
    if passed is not None and (passed == (wanted >= sigma)).all():
        found.sigma = float(sigma)
    else:
        found.note = f"the threshold is {sigma:.6g} with {MANY} patches, and another with {FEW}"


def find_epsilon(box: Box, which: str, sigma: float, samples: int = 1) -> float | None:
    """The epsilon beside the range of a row, from rows of tiny range r: s_hat = r x / (r + eps) reaches sigma later.

    sigma: the threshold at P = 64.  None: it does not show, or two ranges tell two numbers.
    """
    wanted = np.sort(np.concatenate([np.geomspace(sigma * 1.02, 0.98, MANY - 3), [sigma * 0.98]]))

    def edge(name, r, lift, wanted=wanted):
        """The interval of x at which patches begin to pass; None: no gradient."""
        passed = kept(box, which, name, wanted, lengthen=r, lift=lift, samples=samples)
        if passed is None or not passed.any():
            return None if passed is None else (wanted[-1], math.inf)
        first = int(passed.argmax())
        return wanted[first - 1] if first else 0.0, wanted[first]

    for lift in (None, 0.5):
        low, high = (-16.0, -1.0) if lift is None else (-10.0, -1.0)
        for turn in range(6):                             # find a range whose row loses some patches and keeps some
            exponent = (low + high) / 2
            r = 10.0**exponent
            seen = edge(f"epsilon_{lift}_{turn}", r, lift)
            if seen is None:
                return None
            if seen[1] <= sigma * 1.03:
                high = exponent
            elif seen[1] == math.inf:
                low = exponent
            else:
                return _measure(edge, r, lift, seen, sigma)
    return None


def _measure(edge, r, lift, seen, sigma):
    """Narrow the interval at one range, then see whether another range agrees."""
    name = f"epsilon_{lift}_{r:.3g}"
    for turn in range(3):
        if seen[1] - seen[0] < 1e-7 * seen[1] or r < 1e-13:
            break
        closer = edge(f"{name}_{turn}", r, lift, np.linspace(seen[0], seen[1], MANY)[1:-1])
        if closer is None:
            break
        seen = (closer[0] or seen[0], seen[1] if closer[1] == math.inf else closer[1])
    added = float(simplest(*(r * (x / sigma - 1) for x in seen)))
    clamped = float(simplest(*(r * x / sigma for x in seen)))
    other = 1.7 * r
    about = np.array([*np.linspace(0.1, 0.995, 30), *np.linspace(1.005, 1.1, 32)])
    for eps, x in ((added, sigma * (1 + added / other)), (clamped, sigma * max(1.0, clamped / other))):
        if sigma * 1.001 < x < 0.9:
            again = edge(f"{name}_{eps:.3g}_other", other, lift, about * x)
            if again is not None and again[0] < x < again[1] and again[1] / max(again[0], 1e-9) < 1.02:
                return eps
    return None


SOFTMAX_TAUS = (1.0, 0.1, 0.07, 0.05, 0.2, 0.5, 4.0)


def cut_of_softmax(box: Box, which: str) -> dict[float, float]:
    """Temperature -> the softmax weight below which patches get no gradient, for each usual temperature that fits.

    Patches have length 1 and tau is 1: one of similarity x weighs exp(x/T) / sum, and the sum is known.  A long token makes
    weights that reach a threshold of more than 1/P.
    """
    for length in (1.0, 12.0):
        found = {temperature: _cut_at(box, which, temperature, length) for temperature in SOFTMAX_TAUS}
        if known := {temperature: sigma for temperature, sigma in found.items() if sigma is not None}:
            return known
    return {}


def _cut_at(box, which, temperature, length) -> float | None:
    name = f"softmax_cut_{temperature}_{length}"
    temperature = temperature / length
    low, high = 0.0, 1.0
    middle, half = 0.5, 0.47                              # of similarities

    def similarities(middle, half):
        few = int(np.clip(0.3 / high, 3, 16))             # near the edge, so that they make no more than a third of the sum
        about = np.linspace(max(1e-3, middle - half), min(0.999, middle + half), few)
        return np.unique(np.concatenate([np.linspace(0.013, 0.987, MANY - 18), about]))  # most stay: so does the sum

    def total(wanted):
        return np.exp((np.concatenate([wanted, [0.0, 1.0]]) - 1) / temperature).sum()

    for turn in range(20):
        wanted = similarities(middle, half)
        passed = kept(box, which, f"{name}_{turn}", wanted, lengthen=length)
        if passed is None or passed.all() or not passed.any():
            return None
        weight = np.exp((wanted - 1) / temperature) / total(wanted)
        low, high = max(low, weight[~passed].max()), min(high, weight[passed].min())
        if low >= high:                                   # not weights of this temperature
            return None
        if (high - low) / high < 2e-8:
            return float(simplest(low, high))
        half = max(1.5 * temperature * (high - low) / (high + low), 1e-9)
        for _ in range(20):                               # where the edge will be among the patches of the next turn
            edge = 1 + temperature * math.log((low + high) / 2 * total(similarities(middle, half)))
            middle = min(max(edge, 0.002), 0.998)
    return None


LAWS = {"1/sqrt(P)": lambda n: n**-0.5, "1/(P + 1)": lambda n: 1 / (n + 1), "1/(P - 1)": lambda n: 1 / (n - 1),
        "1/P^2": lambda n: n**-2.0}


def law_of(seen: dict[int, tuple[float, float]]) -> tuple[str, Callable[[int], float]] | None:
    """A threshold that follows the number of patches: a word for it and its value; None where none fits both numbers."""
    if set(seen) != {MANY, FEW}:
        return None
    factor = simplest(MANY * seen[MANY][0], MANY * seen[MANY][1])
    laws = LAWS | {f"{factor:.4g}/P": lambda n: factor / n}
    fits = (x for x in laws.items() if all(low < x[1](n) < high for n, (low, high) in seen.items()))
    return next(fits, None)
