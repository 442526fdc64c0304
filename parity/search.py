"""Which settings of the switches reproduce a loss?  Everything is tried, in the order in which probes separate it.

One sample without padding shows eqs. 2-5, norms, temperature, directions and a factor, and hides the rest: all settings of
these are tried on such probes, values first.  What survives is tried with all masks, negatives and reductions on padded
batches.  So no set of deviations is too large to be found, and the work is a sum of two small products.
"""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from parity import variants
from parity.asking import FLOOR, Reading, gradient_off, simplest
from parity.deviations import DEVIATIONS, STAGES, Found
from parity.probes import Probe
from parity.switches import GlobalVariant, Variant, found_in

NORMS = ("", "both", "c", "t")
DIRECTIONS = ("both", "vt", "tv")
REDUCTIONS = ("sample", "token", "mean_all", "masked_over_all")
LOWEST = tuple(float(np.finfo(dtype).min) for dtype in (np.float64, np.float32, np.float16))
SMALL_LOGITS = (-1e4, -1e9, *LOWEST, -1e5, -1e6, -1e8, -1e30, -1e12, -100.0)
TAUS = np.geomspace(2e-3, 50, 72)


@dataclass(frozen=True)
class Candidate:
    """A setting that reproduces what it was compared with."""

    fine: Variant
    off: float                      # largest relative error of the loss so far

    @property
    def cost(self) -> tuple:
        return cost(found_in(self.fine))


def cost(found: tuple[Found, ...]) -> tuple:
    """Fewer deviations first, then what the survey met more often, then the usual way to write it."""
    bad = [d for d in found if not DEVIATIONS[d.id].harmless]
    return len(bad), -sum(DEVIATIONS[d.id].seen for d in bad), len(found), sum(len(d.way) for d in found), str(found)


def stage_of(found) -> str | None:
    """The first stage among deviations, in the order in which data meets them."""
    return min((d.id.split(".")[0] for d in found), key=STAGES.index, default=None)


def fronts(sigmas, rows: str) -> list[Variant]:
    """All settings of eqs. 2-5 that differ in value.  sigmas: thresholds to try, as in Variant.sigma."""
    made = []
    for cosine, unit_values in itertools.product((False, True), repeat=2):
        base = Variant(rows=rows, cosine=cosine, unit_values=unit_values)
        loose = [replace(base, scaled=a, token_norm=b) for a, b in itertools.product((False, True), repeat=2)]
        made += [replace(base, sigma=sigma, weights=w) for sigma in sigmas for w in ("sum", "mean")]
        made += [replace(base, sigma=sigma, on_weights=True) for sigma in sigmas if sigma != "none"]
        made += [replace(o, minmax=False, sigma=sigma) for sigma in sigmas if sigma != "none" for o in loose]
        made += [replace(o, weights="softmax") for o in loose]
        for scaled in (False, True):
            o = replace(base, scaled=scaled)
            made += [replace(o, weights="softmax_all")]
            made += [replace(o, weights=w, sigma=sigma) for w in ("softmax_zeros", "softmax_kept") for sigma in sigmas]
        made += [replace(o, weights="raw") for o in loose] + [replace(base, weights="raw_sum")]
    return made


class Grid:
    """Values of many settings on one probe: fronts x norms x directions."""

    def __init__(self, front: list[Variant], negatives: str = "caption"):
        self.front, self.negatives = front, negatives

    def settings(self):
        return [
            replace(o, no_norm=norm, direction=direction, negatives=self.negatives)
            for norm in NORMS for o in self.front for direction in DIRECTIONS
        ]

    def cosines(self, probe: Probe, scale):
        """(4 norms, F, ...) of c and t."""
        x = variants.tensors(probe)
        c = torch.stack([variants.group(x["v"], x["t"], x["mask"], scale, o)[0] for o in self.front])
        rows = self.front[0].rows
        return torch.stack([
            variants.cosines(c, x["v"], x["t"], x["mask"], Variant(rows=rows, no_norm=norm, negatives=self.negatives))
            for norm in NORMS
        ])

    def values(self, probe: Probe, tau: float | None = None) -> np.ndarray:
        """Losses, in the order of settings(); tau None: the probe's own."""
        scale = torch.tensor(1 / tau if tau else math.exp(probe.theta), dtype=torch.float64)
        return self.losses(probe, self.cosines(probe, scale), scale)

    def losses(self, probe, cosine, scale):
        """cosine (4,F,...), scale () or (T,1,...) -> (..., 4*F*3)"""
        mask = torch.tensor(probe.mask)
        o = Variant(rows=self.front[0].rows, negatives=self.negatives)
        patches = probe.v.shape[1]
        vt, tv, _ = variants.per_row(cosine, mask, patches, scale, o)
        made = [variants.reduce(vt, tv, mask, patches, replace(o, direction=d)) for d in DIRECTIONS]
        made = torch.stack(made, -1)                      # (...,4,F,3)
        return made.reshape(*made.shape[:-3], -1).numpy()


def relative(values, wanted):
    """|values - wanted| / size; 0 where both are NaN or the same infinity, inf where only one is finite."""
    with np.errstate(all="ignore"):
        off = np.abs(values - wanted) / np.maximum(np.maximum(np.abs(values), np.abs(wanted)), FLOOR)
    same = (values == wanted) | (np.isnan(values) & np.isnan(wanted))
    return np.where(same, 0.0, np.where(np.isfinite(off), off, np.inf))


def match(table: np.ndarray, wanted: np.ndarray, factor: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of a table (settings, probes) are `wanted` (probes,), times a factor; None: any factor but 1.

    -> worst relative error (settings,), factors (settings,)
    """
    with np.errstate(all="ignore"):
        best = np.abs(wanted).argmax()
        factors = np.full(len(table), factor if factor is not None else 1.0)
        if factor is None:
            factors = wanted[best] / table[:, best]
        return relative(table * factors[:, None], wanted).max(1), factors


def first_level(
    read, probes, sigmas, rows, constant_tau, tol, negatives="caption", any_factor=True, scaled=(False, True), only=None
) -> list[Candidate]:
    """Settings of eqs. 2-5, norm, temperature, direction and factor that give the values read on `probes`.

    constant_tau  False | True: some number, which is looked for | the number
    scaled        with a constant tau, whether weights that depend on it are tried; they cost most
    only          which settings of eqs. 2-5 are tried: Variant -> bool
    """
    wanted = np.array([read(p).value for p in probes])
    if not np.isfinite(wanted).all():
        return []
    front = [o for o in fronts(sigmas, rows) if only is None or only(o)]
    if not front:
        return []
    if constant_tau is True:
        for some in scaled:
            mine = [o for o in front if o.scaled == some]
            found = constant_temperature(probes, Grid(mine, negatives), wanted, tol, any_factor) if mine else []
            if found:
                return best_first(found)
        return []
    grid = Grid(front, negatives)
    settings = grid.settings()
    tau = constant_tau or None
    table = np.stack([grid.values(p, tau) for p in probes], 1)
    for factor in (1.0, None) if any_factor else (1.0,):
        off, factors = match(table, wanted, factor)
        found = [
            Candidate(replace(settings[i], tau=tau, factor=1.0 if factor else simplest_factor(factors[i], tol)), off[i])
            for i in np.flatnonzero(off < tol)
        ]
        if found:
            return best_first(found)
    return []


def best_first(candidates):
    """By cost; of settings that differ in what is harmless, the plainest."""
    seen = {}
    for c in sorted(candidates, key=lambda c: c.cost):
        bad = tuple(d for d in found_in(c.fine) if not DEVIATIONS[d.id].harmless)
        seen.setdefault((bad, c.fine.factor), c)
    return list(seen.values())


def simplest_factor(x: float, tol: float) -> float:
    wide = max(tol, 1e-9) * abs(x)
    return float(simplest(x - wide, x + wide))


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
        for off, i, k in promising(y, asked, free)[:60]:
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


DETACHED = ("", "similarity", "tokens", "patches", "range", "values", "c", "t")


def with_gradient(read, probes, candidates, tol, options=DETACHED, lacking=()) -> tuple[list[Candidate], bool]:
    """Those whose gradient is right too, as they are or with paths cut.  lacking: inputs that get none, left out.

    -> candidates, was there a gradient to compare?
    """
    good, compared = [], False
    for c in candidates:
        for detach in options:
            o = replace(c.fine, detach=detach or c.fine.detach)
            offs = [gradient_error(read(p), p, o, lacking) for p in probes]
            compared |= any(off is not None for off in offs)
            if all(off is None or off < tol for off in offs):
                good.append(Candidate(o, c.off))
                break
    return best_first(good), compared


def gradient_error(reading: Reading, probe: Probe, o: Variant | GlobalVariant, lacking=()) -> float | None:
    if not reading.grads:
        return None
    (wanted,) = evaluated(probe, o).grads.values()
    return gradient_off(reading.grads, {k: g for k, g in wanted.items() if k not in lacking})


_cache: dict = {}


def evaluated(probe: Probe, o: Variant | GlobalVariant) -> variants.Result:
    """variants.evaluate, remembered."""
    key = (probe.name, probe.theta, o)
    if key not in _cache:
        if len(_cache) > 5000:
            _cache.clear()
        _cache[key] = variants.evaluate(probe, o) if isinstance(o, Variant) else variants.evaluate(probe, pairs=o)
    return _cache[key]


OPEN = [("masked", "masked", False), ("open", "open", False), ("zero", "zero", False), ("masked", "open", False),
        ("open", "masked", False), ("masked", "zero", False), ("zero", "masked", False), ("zero", "zero", True),
        ("open", "zero", False), ("zero", "open", False)]  # fmt: skip


def second_settings(o: Variant, spoilt: bool = False) -> list[Variant]:
    """All masks, negatives and reductions behind one setting of the first level; spoilt: and those that give NaN."""
    negatives = ("caption", "batch", "position") if o.negatives == "caption" else (o.negatives,)
    if o.rows == "patches":
        sigmas = ("keys", "columns", "patches") if o.sigma in ("keys", "patches") else (o.sigma,)
        flats = ("uniform", "zero", "nan") if o.minmax and o.weights in ("sum", "mean") else ("uniform",)
        return [
            replace(o, keys=keys, sigma=sigma, negatives=n, flat=flat)
            for keys in ("masked", "open", "zeroed") for sigma in sigmas for n in negatives for flat in flats
            if not (keys == "open" and sigma == "columns")  # the same as "keys"
        ]
    made = [
        replace(o, open_vt=vt, open_tv=tv, zero_rows=rows, negatives=n, reduction=reduction)
        for n in negatives for vt, tv, rows in OPEN for reduction in REDUCTIONS
    ]
    if spoilt:
        made += [
            replace(o, negatives=n, reduction=reduction, **how)
            for n in negatives for reduction in REDUCTIONS
            for how in ({"inf_padding": "loss"}, {"nan_rows": True}, {"padded_rows": -math.inf})
            if "padded_rows" not in how or reduction == "mean_all"
        ]
    return made


def second_values(settings: list[Variant], probe: Probe) -> np.ndarray:
    """Losses of settings that share their first level: the groups are made once for each way to make them."""
    x = variants.tensors(probe)
    scales, groups, angles, rows, made = {}, {}, {}, {}, []
    for o in settings:
        scale = torch.exp(x["theta"]) if o.tau is None else torch.tensor(1 / o.tau, dtype=torch.float64)
        front = replace(o, open_vt="", open_tv="", zero_rows=False, negatives="", reduction="", factor=1.0, no_norm="")
        if front not in groups:
            groups[front] = variants.group(x["v"], x["t"], x["mask"], scale, front)[0]
        key = (front, o.no_norm, o.negatives)
        if key not in angles:
            angles[key] = variants.cosines(groups[front], x["v"], x["t"], x["mask"], o)
        both = []
        scales[o.tau] = scale
        key = (*key, o.open_vt, o.open_tv, o.zero_rows, o.padded_rows, o.tau, o.reduction == "mean_all", o.nan_rows, o.eps)
        if key not in rows:
            rows[key] = variants.per_row(angles[key[:3]], x["mask"], probe.v.shape[1], scale, o)[:2]
        both = rows[key]
        made.append(float(variants.reduce(*both, x["mask"], probe.v.shape[1], o)))
    return np.array(made)


def second_level(read, probes, candidates, tol) -> list[Candidate]:
    """Masks, negatives and reductions that give the values read on padded batches, NaN where they are NaN."""
    wanted = np.array([read(p).value for p in probes])
    found = []
    for c in candidates:
        settings = second_settings(c.fine, spoilt=not np.isfinite(wanted).all())
        table = np.stack([second_values(settings, p) for p in probes], 1)
        off, _ = match(table, wanted, 1.0)
        found += [Candidate(settings[i], max(c.off, off[i])) for i in np.flatnonzero(off < tol)]
        if not found and np.isfinite(wanted).all():
            found += finite_masks(probes, c, settings, wanted, tol)
    return best_first(found)


def finite_masks(probes, c, settings, wanted, tol):
    """A plain mean whose padded rows see nothing but masked columns: the loss holds the number that masks them."""
    rows = [o for o in settings if o.reduction == "mean_all" and o.open_vt == o.open_tv == "masked" and o.rows == "tokens"]
    found = []
    for o in rows:
        values = {f: second_values([replace(o, padded_rows=f)], probes[0])[0] for f in (-1e4, -2e4)}
        slope = (values[-2e4] - values[-1e4]) / -1e4
        guess = -1e4 + (wanted[0] - values[-1e4]) / slope if slope else math.nan
        guess = simplest(guess * (1 + 1e-7), guess * (1 - 1e-7)) if math.isfinite(guess) else -1.0
        for number in (*SMALL_LOGITS, guess):
            made = np.array([second_values([replace(o, padded_rows=number)], p)[0] for p in probes])
            off = relative(made, wanted).max()
            if off < tol:
                found.append(Candidate(replace(o, padded_rows=number), float(off)))
                break
    return found


def global_settings() -> list[GlobalVariant]:
    """All settings of eq. 1 that differ in value, temperature and factor apart."""
    return [
        GlobalVariant(vision, text, padding, direction=direction)
        for direction in DIRECTIONS
        for vision in ("given", "mean", "unit", "cls")
        for text in ("given", "mean", "unit", "cls")
        for padding in ((False, True) if text in ("mean", "unit") else (False,))
    ]


def explain_global(read, probes, constant_tau: bool, tol: float) -> list[GlobalVariant]:
    """Settings of eq. 1 that give the values read on `probes`, best first; any factor where 1 gives none."""
    wanted = np.array([read(p).value for p in probes])
    if not np.isfinite(wanted).all() or len(probes) < 3 or np.abs(wanted).max() < 1e-9:
        return []
    settings, found = global_settings(), []
    for free in (False, True):
        if constant_tau:
            curves = np.stack([pair_values(p, settings, 1 / TAUS) for p in probes[:3]])
            for off, i, k in promising(curves, wanted, free):
                if off < 2e-2:
                    found += _refine_pairs(probes, settings[i], (TAUS[k], TAUS[k + 1]), wanted, tol, free)
        else:
            table = np.stack([pair_values(p, settings, np.array([math.exp(p.theta)]))[0] for p in probes], 1)
            off, factors = match(table, wanted, None if free else 1.0)
            fitting = np.flatnonzero(off < tol)
            found += [replace(settings[i], factor=simplest_factor(factors[i], tol) if free else 1.0) for i in fitting]
        if found:
            break
    return sorted(found, key=lambda o: (cost(found_in(None, o)), o.vision != "given", o.text != "given"))


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


def root(f, low, high):
    """Where f changes its sign: regula falsi, halved where one end stays.  None: it does not."""
    f_low, f_high = f(low), f(high)
    if np.sign(f_low) == np.sign(f_high):
        return None
    for _ in range(60):
        middle = high - f_high * (high - low) / (f_high - f_low)
        y = f(middle)
        if abs(y) < 1e-15 or abs(high - low) < 1e-15 * high:
            return middle
        if np.sign(y) == np.sign(f_high):
            high, f_high, f_low = middle, y, f_low / 2
        else:
            low, f_low, f_high = middle, y, f_high / 2
    return (low + high) / 2
