"""Small numbers in a denominator, a norm, a logarithm or a mask: settings that nearly fit, made to fit by one of them."""

import math
from dataclasses import replace

from parity.checker.diagnosis import search
from parity.checker.diagnosis.asking import Reading, loss_off, simplest
from parity.checker.diagnosis.matching import Candidate, best_first
from parity.checker.diagnosis.switches import Variant
from parity.checker.probes import Probe

EPSILONS = (("norm",), ("square",), ("norm", "key_norm"), ("key_norm",), ("range",), ("sum",), ("range", "sum"), ("log",))


def value_off(reading: Reading, probe: Probe, o: Variant) -> float:
    return loss_off(reading.value, search.evaluated(probe, o).losses["fine"])


def small_numbers(read, probes, sigmas, tol, negatives) -> list[Candidate]:
    """Settings that nearly fit, made to fit by one small number in a denominator or a logarithm."""
    sigmas = tuple(dict.fromkeys(sigmas))
    near = []
    for rows in ("tokens", "patches"):
        some = [p for p in probes if rows == "tokens" or not p.edge]
        near += search.first_level(read, some, sigmas, rows, False, 3e-4, negatives)
    return with_epsilon(read, probes, near, tol)


def with_epsilon(read, probes, near, tol) -> list[Candidate]:
    """Of settings that nearly fit, those that one small number makes fit."""
    found = []
    for c in sorted(near, key=lambda c: c.off)[:8]:
        for names in EPSILONS:
            found += _fit(read, probes, c.fine, names, tol)
    return best_first(found)[:4]


def _fit(read, probes, o, names, tol):
    """Newton's steps on one number: the value is nearly linear in it."""
    probe = max(probes, key=lambda p: abs(_signed(read, p, o)))
    eps = 1e-7
    for _ in range(5):
        here, more = (_signed(read, probe, replace(o, eps=tuple((n, e) for n in names))) for e in (eps, eps * 1.01))
        slope = (more - here) / (eps * 0.01)
        if not math.isfinite(slope) or abs(slope) < 1e-9:
            return []
        step = -here / slope
        eps += step
        if not 1e-13 < eps < 1e-2:
            return []
        if abs(step) < 1e-7 * eps:
            break
    wide = max(1e-4, 1e-13 / eps) * eps
    for value in (simplest(eps - wide, eps + wide), eps):
        setting = replace(o, eps=tuple((n, float(value)) for n in names))
        off = max(value_off(read(p), p, setting) for p in probes)
        if off < tol:
            return [Candidate(setting, off)]
    return []


def _signed(read, probe, o):
    return search.evaluated(probe, o).losses["fine"] - read(probe).value


def small_fill(read, probes, candidates, tol):
    """Padded keys filled with a small number that is not quite 0."""
    padded = [p for p in probes if "no padding" not in p.holds]
    found = []
    for c in candidates:
        for o in search.second_settings(c.fine):
            if "zero" in (o.open_vt, o.open_tv) and all(abs(_signed(read, p, o)) < 1e-3 for p in padded[:2]):
                found += _fit(read, probes, o, ("fill",), tol)
    return best_first(found)
