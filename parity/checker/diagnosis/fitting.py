"""Numbers that stand beside the known switches: one inside (a temperature, a bias), one outside that the loss is linear in.

A loss is compared with tables A + p B over settings: B is 0, A itself (a factor), 1 or log(1/tau) (a constant), or what a
smoothed label adds.  p follows from one probe, a number x inside from a second, the others confirm; both are then rounded.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from parity.checker.diagnosis import variants
from parity.checker.diagnosis.asking import simplest
from parity.checker.diagnosis.matching import Candidate, relative
from parity.checker.diagnosis.search import Grid
from parity.checker.diagnosis.switches import Variant
from parity.checker.diagnosis.temperatures import TAUS, root
from parity.checker.probes import Probe

LOOSE = 3e-4                                              # what an epsilon may move; it is found afterwards


@dataclass(frozen=True)
class Outside:
    """What is added to, or multiplies, the loss.  put(setting, p) -> setting; full: the setting that has all of it."""

    put: Callable[[Variant, float], Variant]
    rest: Callable[[Variant], Variant] | None = None      # a setting whose loss, less A, is B
    term: Callable[[Probe], float] | None = None          # B itself
    least: float = -math.inf
    most: float = math.inf


PLAIN = Outside(lambda o, p: o, term=lambda probe: 0.0)
FACTOR = Outside(lambda o, p: replace(o, factor=p))
CONSTANT = Outside(lambda o, p: replace(o, constant=p), term=lambda probe: 1.0)
LOG_SCALE = Outside(lambda o, p: replace(o, constant=p, constant_of="log(1/tau)"), term=lambda probe: probe.theta)
SMOOTHING = Outside(lambda o, p: replace(o, smoothing=p), lambda o: replace(o, smoothing=1.0), least=1e-4, most=0.999)
SMOOTH_OTHERS = Outside(
    lambda o, p: replace(o, smoothing=p, smooth_others=True), lambda o: replace(o, smoothing=1.0, smooth_others=True),
    least=1e-4, most=0.999,
)  # fmt: skip
OUTSIDE = (PLAIN, FACTOR, CONSTANT, LOG_SCALE, SMOOTHING, SMOOTH_OTHERS)


@dataclass(frozen=True)
class Inside:
    """A number x inside the loss: the grid on which it is looked for, and put(setting, x) -> setting."""

    grid: np.ndarray
    put: Callable[[Variant, float], Variant]
    name: str


NOTHING = Inside(np.ones(1), lambda o, x: o, "")
GAIN = Inside(np.geomspace(0.01, 100, 72), lambda o, x: replace(o, gain=x), "gain")
TAU = Inside(TAUS, lambda o, x: replace(o, tau=x), "tau")
OWN_TAU = Inside(np.geomspace(4e-3, 60, 80), lambda o, x: replace(o, own_tau=x), "own_tau")
BIAS = Inside(np.linspace(-30, 15, 46), lambda o, x: replace(o, bias=x), "bias")


_tables: dict[tuple, np.ndarray] = {}


def values(front: list[Variant], inside: Inside, probe: Probe, negatives: str) -> np.ndarray:
    """Losses of all settings of Grid(front) for every number of the grid: (T, settings).  The same for every loss checked."""
    key = (tuple(front), inside.name, probe.name, probe.theta, negatives)
    if key not in _tables:
        if sum(x.nbytes for x in _tables.values()) > 1 << 26:
            _tables.clear()
        _tables[key] = _values(front, inside, probe, negatives)
    return _tables[key]


def _values(front, inside, probe, negatives):
    tau = front[0].tau
    scale = torch.tensor(1 / tau if tau else math.exp(probe.theta), dtype=torch.float64)
    grid = Grid(front, negatives)
    if inside.name == "own_tau":
        return np.stack([Grid([inside.put(o, x) for o in front], negatives).values(probe, tau) for x in inside.grid])
    cosine = grid.cosines(probe, scale)
    if inside.name == "bias":
        return np.stack([
            Grid([inside.put(o, x) for o in front], negatives).losses(probe, cosine, scale) for x in inside.grid
        ])
    if inside.name == "tau" and any(o.scaled for o in front):
        return np.stack([Grid(front, negatives).values(probe, x) for x in inside.grid])
    scales = {"gain": scale * torch.tensor(inside.grid), "tau": torch.tensor(1 / inside.grid)}.get(inside.name)
    if scales is None:
        return grid.losses(probe, cosine, scale)[None]
    return grid.losses(probe, cosine, scales.reshape(-1, *[1] * cosine.ndim))


def fit(read, probes, front, tol, inside=NOTHING, outside=OUTSIDE, negatives="caption") -> list[Candidate]:
    """Settings with a number inside and one outside that give what is read on `probes`; the first `outside` that does.

    Where none does, those that come as near as an epsilon would bring them: Candidate.off says which.
    """
    wanted = np.array([read(p).value for p in probes])
    if not front or not np.isfinite(wanted).all():
        return []
    few = 3 if inside is not NOTHING else len(probes)
    a = np.stack([values(front, inside, p, negatives) for p in probes[:few]], -1)  # (T, settings, few)
    settings = Grid(front, negatives).settings()
    near: dict[Variant, float] = {}
    for out in outside:
        one, many = _parts(out, a, front, inside, probes[:few], negatives)
        found: dict[Variant, float] = {}
        for setting, between in _promising(one, many, wanted[:few], out, inside):
            made = refine(probes, wanted, settings[setting], inside, between, out, tol)
            if made is not None:
                (found if made[1] < tol else near)[made[0]] = made[1]
            if len(found) >= 12:
                break
        if found:
            return [Candidate(o, off) for o, off in found.items()]
    return [Candidate(o, off) for o, off in near.items()] if read.box.dtype() == "float64" else []


def _parts(out, a, front, inside, probes, negatives):
    """A and B for all settings."""
    if out is FACTOR:
        return np.zeros_like(a), a
    if out.term is not None:
        return a, np.broadcast_to([out.term(p) for p in probes], a.shape)
    full = [out.rest(o) for o in front]
    return a, np.stack([values(full, inside, p, negatives) for p in probes], -1) - a


def _promising(a, b, wanted, out, inside) -> Iterator[tuple[int, tuple[float, float]]]:
    """Settings, and the step of the grid in which their number lies; the likeliest first."""
    with np.errstate(all="ignore"):
        if inside is NOTHING:
            p = _outer(a[0], b[0], wanted, out)
            off = relative(a[0] + p[:, None] * b[0], wanted).max(-1)
            off[~((p >= out.least) & (p <= out.most))] = np.inf
            for i in np.argsort(off)[:40]:
                if off[i] < LOOSE:
                    yield int(i), (1.0, 1.0)
            return
        near = []
        for turn in range(len(wanted)):                   # a curve may just touch the value on one probe, not on all
            order = [*range(turn, len(wanted)), *range(turn)]
            y, z, w = a[..., order], b[..., order], wanted[order]
            p = 0.0 if out is PLAIN else (w[0] - y[..., 0]) / z[..., 0]
            k = 0 if out is PLAIN else 1
            miss = y[..., k] + p * z[..., k] - w[k]
            ends = np.isfinite(miss[:-1]) & np.isfinite(miss[1:]) & (np.sign(miss[:-1]) != np.sign(miss[1:]))
            for step, i in zip(*np.nonzero(ends)):
                part = miss[step, i] / (miss[step, i] - miss[step + 1, i])
                one, two = (x[step, i] * (1 - part) + x[step + 1, i] * part for x in (y, z))
                q = 0.0 if out is PLAIN else (w[0] - one[0]) / two[0]
                off = float(relative(one + q * two, w).max())
                if off < 3e-2:
                    near.append((off, int(i), int(step)))
        seen = set()
        for _off, i, step in sorted(near)[:20]:
            if (i, step) not in seen:
                seen.add((i, step))
                yield i, (float(inside.grid[step]), float(inside.grid[step + 1]))


def _outer(a, b, wanted, out):
    """p by the probe on which it shows most.      (settings, probes) -> (settings,)"""
    if out is PLAIN:
        return np.ones(len(a))
    best = np.abs(b).argmax(-1)
    row = np.arange(len(a))
    return (wanted[best] - a[row, best]) / b[row, best]


def refine(probes, wanted, setting, inside, between, out, tol):
    """(setting, error) with both numbers found and rounded to the simplest near them; None where not all probes agree."""
    def parts(o, k):
        y = variants.evaluate(probes[k], o, grad=False).losses["fine"]
        if out is FACTOR:
            return 0.0, y
        if out.term is not None:
            return y, out.term(probes[k])
        return y, variants.evaluate(probes[k], out.rest(o), grad=False).losses["fine"] - y

    def outer(o, some):
        pairs = [parts(o, k) for k in some]
        y, z = max(pairs, key=lambda pair: abs(pair[1]))
        w = wanted[some[pairs.index((y, z))]]
        return (w - y) / z if z else 0.0

    def miss(x):
        o = inside.put(setting, x)
        if out is PLAIN:
            return parts(o, 0)[0] - wanted[0]
        (y0, z0), (y1, z1) = parts(o, 0), parts(o, 1)
        return y1 + (wanted[0] - y0) / z0 * z1 - wanted[1] if z0 else math.nan

    def spread(x):
        o = inside.put(setting, x)
        o = o if out is PLAIN else out.put(o, outer(o, range(3)))
        y = [variants.evaluate(p, o, grad=False).losses["fine"] for p in probes[:3]]
        return float(relative(np.array(y), wanted[:3]).max())

    xs = [1.0]
    if inside is not NOTHING:
        x = root(miss, *between, enough=1e-4)             # near enough to see whether it is worth more
        if x is None or not math.isfinite(x) or spread(x) > 3e-3:
            return None
        x = root(miss, *between)
        if x is None or not math.isfinite(x):
            return None
        xs = rounded(x, tol)
    best = None
    for x in xs:
        o = inside.put(setting, x)
        made = [o]
        if out is not PLAIN:
            p = outer(o, range(len(probes)))
            if not out.least <= p <= out.most or not math.isfinite(p):
                continue
            made = [out.put(o, q) for q in rounded(p, tol)]
        for o in made:
            y = np.array([variants.evaluate(p, o, grad=False).losses["fine"] for p in probes])
            off = float(relative(y, wanted).max())
            if off < tol:
                return o, off
            if off < LOOSE:
                best = o, off                             # the last is the roundest
    return best


def rounded(x: float, tol: float) -> list[float]:
    """The simplest number within rounding, x itself, and the simplest where an epsilon has moved it."""
    fine, wide = (share * max(abs(x), 1e-3) for share in (max(30 * tol, 1e-9), 1e-5))
    return [float(simplest(x - fine, x + fine)), float(x), float(simplest(x - wide, x + wide))]
