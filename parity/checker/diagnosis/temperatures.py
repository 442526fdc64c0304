"""A temperature that is hard-coded: which tau, under which setting, gives the losses that were read?"""

import itertools
from dataclasses import replace

import numpy as np
import torch

from parity.checker.diagnosis import variants
from parity.checker.diagnosis.asking import simplest
from parity.checker.diagnosis.matching import Candidate, relative, simplest_factor

TAUS = np.geomspace(2e-3, 50, 72)


def constant_temperature(probes, grid, wanted, tol, any_factor):
    """As first_level, where tau is a number in the box: curves over tau cross the value on one probe, the others confirm."""
    few = [k for k, p in enumerate(probes) if not p.edge][:3]
    order = few + [k for k, p in enumerate(probes) if p.edge]
    probes, wanted, settings = [probes[k] for k in order], wanted[order], grid.settings()
    curves = np.stack([_curves(p, grid) for p in probes[:3]])  # (3, T, settings)
    for free, turn in itertools.product((False, True) if any_factor else (False,), range(3)):
        turned = [*range(turn, 3), *range(turn)]          # a curve may just touch the value on one probe, not on all three
        y, asked = curves[turned], wanted[turned]
        found, order = [], turned + list(range(3, len(probes)))
        for off, i, k in promising(y, asked, free)[:20]:
            if off < 2e-2:
                found += refine([probes[n] for n in order], settings[i], (TAUS[k], TAUS[k + 1]), wanted[order], tol, free)
        if found:
            return found
    return []


def crossings(curves, wanted, free):
    """Where curves over TAUS pass the wanted value, or its ratio between two probes: (k, setting, part of the step)."""
    with np.errstate(all="ignore"):
        f = np.log(curves[0] / curves[1] * wanted[1] / wanted[0]) if free else np.log(curves[0] / wanted[0])
        crossing = np.isfinite(f[:-1]) & np.isfinite(f[1:]) & (np.sign(f[:-1]) != np.sign(f[1:]))
        return [(k, i, f[k, i] / (f[k, i] - f[k + 1, i])) for k, i in zip(*np.nonzero(crossing))]


def promising(curves, wanted, free) -> list[tuple[float, int, int]]:
    """Crossings of the first curve, those first that the other two confirm: (off, setting, step)."""
    near = []
    for k, i, part in crossings(curves, wanted, free):
        with np.errstate(all="ignore"):                   # losses are nearly powers of each other between two taus
            between = np.exp(np.log(curves[:, k, i]) * (1 - part) + np.log(curves[:, k + 1, i]) * part)
        x = wanted[0] / between[0] if free else 1.0
        near.append((float(relative(x * between, wanted[: len(curves)]).max()), int(i), int(k)))
    return sorted(near)


def _curves(probe, grid):
    """Losses at every tau of TAUS: (T, settings)."""
    scales = torch.tensor(1 / TAUS, dtype=torch.float64)
    if grid.front[0].scaled:
        return np.stack([grid.losses(probe, grid.cosines(probe, scale), scale) for scale in scales])
    cosine = grid.cosines(probe, torch.tensor(1.0, dtype=torch.float64))
    if cosine.numel() > 20_000:                           # float32 is enough to tell where curves cross, and quicker
        cosine, scales = cosine.to(torch.float32), scales.to(torch.float32)
    return grid.losses(probe, cosine, scales.reshape(-1, *[1] * cosine.ndim)).astype(np.float64)


def refine(probes, setting, between, wanted, tol, free):
    """Bisect tau, round it to the simplest number near, confirm."""
    def values(tau, some=probes):
        return np.array([variants.evaluate(p, replace(setting, tau=tau), grad=False).losses["fine"] for p in some])

    def sign(tau):
        y = values(tau, probes[:2])
        return np.log(y[0] / y[1] * wanted[1] / wanted[0]) if free else y[0] - wanted[0]

    middle = root(sign, *between, enough=1e-4)            # near enough to see whether it is worth more
    if middle is None:
        return []
    made = values(middle, probes[:3])
    if relative(wanted[0] / made[0] * made if free else made, wanted[:3]).max() > 3e-3:
        return []
    middle = root(sign, *between)
    if middle is None:
        return []
    wide = max(30 * tol, 1e-9)
    for tau in (simplest(middle * (1 - wide), middle * (1 + wide)), middle):
        made = values(tau)
        x = simplest_factor(wanted[0] / made[0], tol) if free else 1.0
        off = relative(x * made, wanted).max()
        if off < tol:
            return [Candidate(replace(setting, tau=float(tau), factor=x), float(off))]
    return []


def root(f, low, high, enough=1e-15):
    """Where f changes its sign, to a relative `enough`: regula falsi, halved where one end stays.  None: it does not."""
    f_low, f_high = f(low), f(high)
    if np.sign(f_low) == np.sign(f_high):
        return None
    last = low
    for _ in range(60):
        middle = high - f_high * (high - low) / (f_high - f_low)
        y = f(middle)
        if enough > 1e-12 and abs(middle - last) < enough * abs(middle):
            return middle
        last = middle
        if abs(y) < 1e-15 or abs(high - low) < enough * abs(high):
            return middle
        if np.sign(y) == np.sign(f_high):
            high, f_high, f_low = middle, y, f_low / 2
        else:
            low, f_low, f_high = middle, y, f_high / 2
    return (low + high) / 2
