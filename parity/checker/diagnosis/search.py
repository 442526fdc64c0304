"""Which settings of the switches reproduce a loss?  Everything is tried, in the order in which probes separate it.

One sample without padding shows eqs. 2-5, norms, temperature, directions and a factor, and hides the rest: all settings of
these are tried on such probes, values first.  What survives is tried with all masks, negatives and reductions on padded
batches.  So no set of deviations is too large to be found, and the work is a sum of two small products.
"""

import functools
import itertools
import math
import operator
from dataclasses import fields, replace

import numpy as np
import torch

from parity.checker.diagnosis import variants
from parity.checker.diagnosis.asking import Reading, gradient_off, simplest
from parity.checker.diagnosis.matching import Candidate, best_first, match, relative, simplest_factor
from parity.checker.diagnosis.switches import GlobalVariant, Variant
from parity.checker.diagnosis.temperatures import constant_temperature
from parity.checker.probes import Probe

NORMS = ("", "both", "c", "t")
DIRECTIONS = ("both", "vt", "tv")
REDUCTIONS = ("sample", "token", "mean_all", "masked_over_all", "sum")
LOWEST = tuple(float(np.finfo(dtype).min) for dtype in (np.float64, np.float32, np.float16))
SMALL_LOGITS = (-1e4, -1e9, *LOWEST, -1e5, -1e6, -1e8, -1e30, -1e12, -100.0)
DETACHED = ("", "similarity", "tokens", "patches", "range", "values", "c", "t")  # paths that no gradient takes


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


@functools.lru_cache(maxsize=32)
def _settings(front: tuple[Variant, ...], negatives: str) -> list[Variant]:
    return [
        replace(o, no_norm=norm, direction=direction, negatives=negatives)
        for norm in NORMS for o in front for direction in DIRECTIONS
    ]


_tables: dict[tuple, np.ndarray] = {}


class Grid:
    """Values of many settings on one probe: fronts x norms x directions."""

    def __init__(self, front: list[Variant], negatives: str = "caption"):
        self.front, self.negatives = tuple(front), negatives

    def settings(self) -> list[Variant]:
        return _settings(self.front, self.negatives)

    def cosines(self, probe: Probe, scale):
        """(4 norms, F, ...) of c and t."""
        x = variants.tensors(probe)
        c = torch.stack([variants.group(x["v"], x["t"], x["mask"], scale, o)[0] for o in self.front])
        return torch.stack([
            variants.cosines(c, x["v"], x["t"], x["mask"], replace(self.front[0], no_norm=norm, negatives=self.negatives))
            for norm in NORMS
        ])

    def values(self, probe: Probe, tau: float | None = None) -> np.ndarray:
        """Losses, in the order of settings(); tau None: the probe's own."""
        key = (probe.name, probe.theta, self.front, self.negatives, tau)
        if key not in _tables:                            # the same for every loss that is checked
            if len(_tables) > 500:
                _tables.clear()
            scale = torch.tensor(1 / tau if tau else math.exp(probe.theta), dtype=torch.float64)
            _tables[key] = self.losses(probe, self.cosines(probe, scale), scale)
        return _tables[key]

    def losses(self, probe, cosine, scale):
        """cosine (4,F,...), scale () or (T,1,...) -> (..., 4*F*3)"""
        mask = torch.tensor(probe.mask)
        o = replace(self.front[0], negatives=self.negatives)  # what follows the groups is the same for all of them
        patches = probe.v.shape[1]
        vt, tv, _ = variants.per_row(cosine, mask, patches, scale, o)
        outer = scale.reshape(-1, 1, 1) if scale.ndim else scale
        made = [variants.reduce(vt, tv, mask, patches, replace(o, direction=d), outer) for d in DIRECTIONS]
        made = torch.stack(made, -1)                      # (...,4,F,3)
        return made.reshape(*made.shape[:-3], -1).numpy()


def first_level(
    read, probes, sigmas, rows, constant_tau, tol, negatives="caption", any_factor=True, scaled=(False, True), only=None,
    **fields,
) -> list[Candidate]:
    """Settings of eqs. 2-5, norm, temperature, direction and factor that give the values read on `probes`.

    constant_tau  False | True: some number, which is looked for | the number
    scaled        with a constant tau, whether weights that depend on it are tried; they cost most
    only          which settings of eqs. 2-5 are tried: Variant -> bool
    fields        what is known of the steps after them, as fields of Variant
    """
    wanted = np.array([read(p).value for p in probes])
    if not np.isfinite(wanted).all():
        return []
    front = [o for o in fronts(sigmas, rows) if only is None or only(o)]
    if not front:
        return []
    front = [replace(o, **fields) for o in front] if fields else front
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
            Candidate(_times(replace(settings[i], tau=tau), 1.0 if factor else simplest_factor(factors[i], tol)), off[i])
            for i in np.flatnonzero(off < tol)
        ]
        if found:
            return best_first(found)
    return []


def _times(o: Variant, factor: float) -> Variant:
    return replace(o, factor=o.factor * factor)


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
    if probe.v.size > 1 << 14:
        return variants.evaluate(probe, o) if isinstance(o, Variant) else variants.evaluate(probe, pairs=o)
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
    made = [form for setting in made for form in _forms(setting)]
    if spoilt:
        made += [
            replace(o, negatives=n, reduction=reduction, **how)
            for n in negatives for reduction in REDUCTIONS
            for how in ({"inf_padding": "loss"}, {"nan_rows": True}, {"padded_rows": -math.inf})
            if "padded_rows" not in how or reduction == "mean_all"
        ]
    return made


def _forms(o: Variant) -> list[Variant]:
    """What only padding tells apart."""
    if o.constant:
        return [o, replace(o, constant_rows=True)]
    ends = {"both": ("both", "ends"), "last": ("last",)}.get(o.special, (o.special,))
    return [replace(o, special=special) for special in ends]


SECOND = ("open_vt", "open_tv", "zero_rows", "negatives", "reduction", "factor", "no_norm")  # what follows the groups
first_of = operator.attrgetter(*(f.name for f in fields(Variant) if f.name not in SECOND))
row_of = operator.attrgetter("open_vt", "open_tv", "zero_rows", "padded_rows", "nan_rows")
share_of = operator.attrgetter("rows", "special", "special_rows", "reduction", "nan_empty")


def second_values(settings: list[Variant], probe: Probe) -> np.ndarray:
    """Losses of settings that share their first level: the groups are made once for each way to make them."""
    x, patches = variants.tensors(probe), probe.v.shape[1]
    groups: dict = {}
    angles: dict = {}
    rows: dict = {}
    shares: dict = {}
    made = []
    for o in settings:
        front = first_of(o)
        if front not in groups:
            scale = torch.exp(x["theta"]) if o.tau is None else torch.tensor(1 / o.tau, dtype=torch.float64)
            groups[front] = variants.group(x["v"], x["t"], x["mask"], scale, o)[0], scale
        group, scale = groups[front]
        angle = (front, o.no_norm, o.negatives)
        if angle not in angles:
            angles[angle] = variants.cosines(group, x["v"], x["t"], x["mask"], o)
        row = (angle, row_of(o), o.reduction == "mean_all")
        if row not in rows:
            rows[row] = variants.per_row(angles[angle], x["mask"], patches, scale, o)[:2]
        share = share_of(o)
        if share not in shares:
            shares[share] = variants.shares(x["mask"], patches, o)
        vt, tv = rows[row]
        made.append(float(variants.reduce(vt, tv, x["mask"], patches, o, scale, shares[share])))
    return np.array(made)


def second_level(read, probes, candidates, tol) -> list[Candidate]:
    """Masks, negatives and reductions that give the values read on padded batches, NaN where they are NaN."""
    wanted = np.array([read(p).value for p in probes])
    found = []
    if any(c.fine.contrast == "decoupled" for c in candidates):
        return best_first(decoupled(read, probes, candidates, tol))
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


def decoupled(read, probes, candidates, tol):
    """Where the own pair is left out, a caption of one token has no denominator: 0, or what masks it, or keeps a log from 0."""
    plain = [p for p in probes if p.mask.sum(1).min() > 1]
    one = next((k for k, p in enumerate(probes) if p not in plain), None)
    wanted, every = (np.array([read(p).value for p in some]) for some in (plain, probes))
    found = []
    for c in candidates:
        settings = second_settings(c.fine)
        off, _ = match(np.stack([second_values(settings, p) for p in plain], 1), wanted, 1.0)
        for i in np.flatnonzero(off < tol):
            numbers = [-math.inf, *SMALL_LOGITS]
            if one is not None and math.isfinite(every[one]):
                low, high = second_values([replace(settings[i], alone=x) for x in (-20.0, -40.0)], probes[one])
                x = float(-20.0 - 20.0 * (every[one] - low) / (high - low)) if high != low else -20.0
                y = float(simplest(*sorted((math.exp(x) * (1 - 1e-6), math.exp(x) * (1 + 1e-6))))) if -60 < x < 5 else 0.0
                numbers += [math.log(y) if y > 0 else x, x]  # an epsilon in a logarithm
            forms = [replace(settings[i], alone="zero")]
            forms += [replace(settings[i], alone=x, alone_places=places) for x in numbers for places in (False, True)]
            worst, _ = match(np.stack([second_values(forms, p) for p in probes], 1), every, 1.0)
            found += [Candidate(o, float(x)) for o, x in zip(forms, worst) if x < tol][:1]
    return found
