"""Which settings of eq. 1 reproduce a global loss?"""

import math
from dataclasses import replace

import numpy as np
import torch

from parity.checker.diagnosis import variants
from parity.checker.diagnosis.asking import simplest
from parity.checker.diagnosis.matching import cost, match, relative, simplest_factor
from parity.checker.diagnosis.switches import GlobalVariant, found_in
from parity.checker.diagnosis.temperatures import TAUS, promising, root

DIRECTIONS = ("both", "vt", "tv")


def explain_global(read, probes, constant_tau: bool, tol: float) -> list[GlobalVariant]:
    """Settings of eq. 1 that give the values read on `probes`, best first; any factor where 1 gives none."""
    wanted = np.array([read(p).value for p in probes])
    if not np.isfinite(wanted).all() or len(probes) < 3 or np.abs(wanted).max() < 1e-9:
        return []
    settings, found = global_settings(), []
    for free in (False, True):
        if constant_tau:
            curves = np.stack([pair_values(p, settings, 1 / TAUS) for p in probes[:3]])
            for miss, i, k in promising(curves, wanted, free):
                if miss < 2e-2:
                    found += _refine_pairs(probes, settings[i], (TAUS[k], TAUS[k + 1]), wanted, tol, free)
        else:
            table = np.stack([pair_values(p, settings, np.array([math.exp(p.theta)]))[0] for p in probes], 1)
            off, factors = match(table, wanted, None if free else 1.0)
            fitting = np.flatnonzero(off < tol)
            found += [replace(settings[i], factor=simplest_factor(factors[i], tol) if free else 1.0) for i in fitting]
        if found:
            break
    return sorted(found, key=lambda o: (cost(found_in(None, o)), o.vision != "given", o.text != "given"))


def global_settings() -> list[GlobalVariant]:
    """All settings of eq. 1 that differ in value, temperature and factor apart."""
    return [
        GlobalVariant(vision, text, padding, direction=direction)
        for direction in DIRECTIONS
        for vision in ("given", "mean", "unit", "cls")
        for text in ("given", "mean", "unit", "cls")
        for padding in ((False, True) if text in ("mean", "unit") else (False,))
    ]


def _refine_pairs(probes, setting, between, wanted, tol, free):
    """As refine."""
    def values(tau, some):
        return np.array([pair_values(p, [setting], np.array([1 / tau]))[0, 0] for p in some])

    def sign(tau):
        y = values(tau, probes[:2])
        return np.log(y[0] / y[1] * wanted[1] / wanted[0]) if free else y[0] - wanted[0]

    tau = root(sign, *between)
    wide = max(30 * tol, 1e-9)
    for x in (float(simplest(tau * (1 - wide), tau * (1 + wide))), tau) if tau else ():
        made = values(x, probes)
        factor = simplest_factor(wanted[0] / made[0], tol) if free else 1.0
        if relative(factor * made, wanted).max() < tol:
            return [replace(setting, tau=x, factor=factor)]
    return []


def pair_values(probe, settings, scales) -> np.ndarray:
    """Global losses of settings on one probe at several scales 1/tau: (T, settings)."""
    x, parts, made = variants.tensors(probe), {}, []
    scales = torch.tensor(scales, dtype=torch.float64)[:, None, None]
    for o in settings:
        key = (o.vision, o.text, o.padding)
        if key not in parts:
            one, two = variants.pools(x["v"], x["t"], x["mask"], x["v_bar"], x["t_bar"], o)
            z = scales * (variants.unit(one) @ variants.unit(two).T)
            parts[key] = [
                (torch.logsumexp(y, -1) - torch.diagonal(y, dim1=1, dim2=2)).mean(-1).numpy() for y in (z, z.mT)
            ]
        vt, tv = parts[key]
        made.append(o.factor * {"both": (vt + tv) / 2, "vt": vt, "tv": tv}[o.direction])
    return np.stack(made, 1)
