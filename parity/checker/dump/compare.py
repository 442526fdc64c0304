"""Readings of the paper, deviations, sums and multiples, compared with the numbers of one batch."""

import itertools
import math
from dataclasses import replace

import numpy as np
import torch

from parity.checker.diagnosis import variants
from parity.checker.diagnosis.asking import gradient_off, loss_off, simplest
from parity.checker.diagnosis.deviations import Found
from parity.checker.diagnosis.matching import simplest_factor
from parity.checker.diagnosis.switches import WAYS, Variant, found_in
from parity.checker.dump.report import Match, offs
from parity.checker.probes import Probe
from sparc_ref import global_loss

PAIRS_SECONDS = 60.0                                      # for pairs of deviations
SIGMAS = (0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05, 0.02, 0.01, 1 / 16, 1 / 49, 1 / 64, 1 / 196, 1 / 256, 1 / 576, 1e-3)
TAUS = (1.0, 0.5, 0.2, 0.1, 0.07, 0.05, 0.02, 0.01)
WEIGHTS = ((1.0, 0.0), (1.0, 1.0), (0.5, 1.0), (0.5, 0.5), (1.0, 0.5))  # of eqs. 1 and 6, where no gradient gives them


class Numbers:
    """What a file gives, and how readings of it compare with that.  every: all that were compared, in order."""

    def __init__(self, probe: Probe, loss: float, grads: dict[str, np.ndarray], tolerance: tuple[float, float]):
        self.probe, self.loss, self.grads, self.tolerance = probe, loss, grads, tolerance
        self.every: list[Match] = []

    def made(self, fine: Variant, probe=None) -> tuple[float, dict[str, np.ndarray]]:
        """What a setting gives: value, gradients."""
        result = variants.evaluate(self.probe if probe is None else probe, fine, grad=bool(self.grads))
        return result.losses["fine"], {k: x for k, x in result.grads.get("fine", {}).items() if k in self.grads}

    def compare(self, value, grads, found=(), how="", label="") -> Match:
        off = value_off(self.loss, value)
        m = Match(tuple(found), off, gradients_off(self.grads, grads) if self.grads else None, how, label)
        self.every.append(m)
        return m

    def fits(self, m: Match) -> bool:
        return bool(m.loss < self.tolerance[0]) and (m.gradient is None or m.gradient < self.tolerance[1])

    @property
    def matches(self) -> list[Match]:
        return [m for m in self.every if self.fits(m) and (m.gradient is not None or not self.grads)]

    def slopes(self, grads) -> dict[str, float]:
        """How many times a reading's gradient each one is; {} unless all are multiples."""
        found = {}
        for leaf, given in self.grads.items():
            wanted = grads[leaf]
            if not np.isfinite(given).all() or not (square := float((wanted * wanted).sum())):
                return {}
            found[leaf] = float((given * wanted).sum()) / square
            if not found[leaf] or (gradient_off({leaf: given}, {leaf: found[leaf] * wanted}) or 0.0) > self.tolerance[1]:
                return {}
        return found


def value_off(given: float, wanted: float) -> float:
    """Relative; NaN is NaN, and an infinity is the same one, or else nothing is alike."""
    if math.isfinite(given) and math.isfinite(wanted):
        return loss_off(given, wanted)
    return 0.0 if given == wanted or (math.isnan(given) and math.isnan(wanted)) else math.inf


def gradients_off(given: dict, wanted: dict) -> float:
    """As gradient_off, where what is not finite has to be so in the same places."""
    plain: tuple[dict, dict] = {}, {}
    for leaf, g in given.items():
        w = np.asarray(wanted.get(leaf, np.nan))
        odd = ~np.isfinite(g)
        if not np.array_equal(np.where(odd, g, 0.0), np.where(np.isfinite(w), 0.0, w), equal_nan=True):
            return math.inf
        plain[0][leaf], plain[1][leaf] = np.where(odd, 0.0, g), np.where(odd, 0.0, w)
    return gradient_off(*plain) or 0.0


def digits_of(x: np.ndarray) -> int:
    """How many significant digits a number was written with: 4 for 1.234, 17 or so for what was computed."""
    if not np.any(x):
        return 17
    text = np.format_float_scientific(np.asarray(x).flat[0], trim="-").partition("e")[0]
    return len(text.replace(".", "").replace("-", "").rstrip("0")) or 1


def other_losses(numbers: Numbers, fine) -> int:
    """Eq. 1 of means over patches and over real tokens, and sums of it and eq. 6.      -> how many were compared"""
    probe = numbers.probe
    count = probe.mask.sum(1)
    if len(probe.v) < 2 or not count.all() or not np.isfinite([fine[0], numbers.loss]).all():
        return 0
    v_bar = probe.v.mean(1)
    t_bar = np.where(probe.mask[..., None], probe.t, 0.0).sum(1) / count[:, None]
    try:
        value, _, back = global_loss(v_bar, t_bar, np.asarray(probe.theta))
        dv, dt, dtheta = back()
    except ArithmeticError:                               # beyond the range of numbers
        return 0
    share = probe.mask / count[:, None]
    whole = {"v": np.repeat(dv[:, None] / probe.v.shape[1], probe.v.shape[1], 1), "t": share[..., None] * dt[:, None],
             "theta": dtheta}
    one, other = (float(value), {k: whole[k] for k in numbers.grads}), fine
    weights: tuple[tuple[float, float], ...] = WEIGHTS
    if numbers.grads:                                     # both weights, by least squares over the loss and all gradients
        def column(x):
            parts = [np.ravel(x[1][k]) / (np.abs(numbers.grads[k]).max() or 1.0) for k in numbers.grads]
            return np.concatenate([[x[0] / (abs(numbers.loss) or 1.0)], *parts])

        if not all(np.isfinite(g).all() for g in (*numbers.grads.values(), *other[1].values())):
            return 0
        found = np.linalg.lstsq(np.stack([column(one), column(other)], 1), column((numbers.loss, numbers.grads)), rcond=None)[0]
        a, b = (0.0 if abs(x) < 1e-6 else simplest_factor(float(x), 1e2 * numbers.tolerance[1]) for x in found)
        weights = ((a, b),) if a and (a, b) != (0.0, 1.0) else ()
    for a, b in weights:
        grads = {k: a * one[1][k] + b * other[1][k] for k in numbers.grads}
        parts = [f"{x:.6g} {name}".removeprefix("1 ") for x, name in ((a, "eq. 1"), (b, "eq. 6")) if x]
        m = numbers.compare(a * one[0] + b * other[0], grads, label=f"{' + '.join(parts)}, of means over patches and tokens")
        if not numbers.fits(m) and a not in (0.5, 1.0):   # two weights bring anything a little nearer
            numbers.every.pop()
    return len(weights)


def constant_temperatures(numbers: Numbers) -> list[float]:
    """Every constant tau from 0.005 to 2 that gives the loss."""
    def miss(log_tau):
        return variants.evaluate(numbers.probe, Variant(tau=math.exp(log_tau)), grad=False).losses["fine"] - numbers.loss

    grid = np.linspace(math.log(0.005), math.log(2.0), 60)
    offs_ = [miss(x) for x in grid]
    found = []
    for k in range(len(grid) - 1):
        if offs_[k] * offs_[k + 1] < 0:
            low, high, sign = grid[k], grid[k + 1], offs_[k]
            for _ in range(50):
                middle = (low + high) / 2
                low, high = (middle, high) if miss(middle) * sign > 0 else (low, middle)
            found.append(simplest(math.exp(low) * (1 - 1e-8), math.exp(high) * (1 + 1e-8)))
    return found


def multiples(numbers: Numbers, singles, values) -> None:
    """Gradients, or loss and gradients, that are a known setting's times a number."""
    theta = numbers.probe.theta
    if not math.isfinite(numbers.loss):
        return
    for fine, found in singles.items():
        value, grads = values[fine]
        if not math.isfinite(value) or not value or not (slope := numbers.slopes(grads)):
            continue
        ratio, tol = numbers.loss / value, numbers.tolerance[1]
        common = simplest_factor(float(np.median(list(slope.values()))), tol)
        alike = all(abs(k / common - 1) < 2 * tol for k in slope.values())
        if alike and abs(ratio / common - 1) < 2 * tol:   # loss.factor of any size
            factor = simplest_factor(ratio, 1e2 * numbers.tolerance[0])
            if not any(d.id == "loss.factor" for d in found):
                times = {k: factor * g for k, g in grads.items()}
                numbers.compare(factor * value, times, (*found, Found("loss.factor", factor)))
        elif value_off(numbers.loss, value) < numbers.tolerance[0]:
            if alike and len(slope) > 1:
                numbers.compare(value, {k: common * g for k, g in grads.items()}, found, f"all gradients times {common:.6g}")
                continue
            wrong = {leaf: named(leaf, k, theta, tol) for leaf, k in slope.items() if abs(k - 1) > tol}
            times = {leaf: wrong[leaf][1] * g if leaf in wrong else g for leaf, g in grads.items()}
            if wrong:
                numbers.compare(value, times, (*found, *(what for what, _ in wrong.values())))


def named(leaf: str, k: float, theta: float, tol: float) -> tuple[Found, float]:
    """A gradient that is k times the right one, as the survey has it, and what it is then times exactly."""
    known = {"sign": -1.0} | ({"of_tau": -math.exp(theta), "of_scale": math.exp(-theta)} if leaf == "theta" else {})
    for how, times in known.items():
        if abs(k / times - 1) < tol:
            return Found(f"gradient.{leaf}.{how}"), times
    factor = simplest_factor(k, tol)
    return Found(f"gradient.{leaf}.factor", factor), factor


def pairs(numbers: Numbers, singles, seconds: float, notes: list[str]) -> int:
    """Two deviations together, where there is time.      -> how many"""
    some = list(known_pairs(singles))
    each = seconds / len(numbers.every) * (0.4 if numbers.grads else 1.0)
    if each * len(some) > PAIRS_SECONDS:
        notes.append(f"pairs of deviations were not tried: about {each * len(some):.0f} s on a batch of this size, more "
                     f"than {PAIRS_SECONDS:.0f}; a smaller batch allows it")
        return 0
    for fine, found in some:
        value = variants.evaluate(numbers.probe, fine, grad=False).losses["fine"]
        if value_off(numbers.loss, value) < numbers.tolerance[0] and numbers.grads:
            numbers.compare(*numbers.made(fine), found)
        else:
            numbers.every.append(Match(tuple(found), value_off(numbers.loss, value), None))
    return len(some)


def in_bfloat16(numbers: Numbers, plain, first: Match) -> str:
    """How far rounding of the embeddings to bfloat16 moves eq. 6, beside how far these numbers are from it."""
    def rounded(x):
        return torch.tensor(x).bfloat16().double().numpy()

    probe = replace(numbers.probe, v=rounded(numbers.probe.v), t=rounded(numbers.probe.t))
    value, grads = numbers.made(Variant(), probe)
    moved = offs(Match((), value_off(value, plain[0]), gradients_off(grads, plain[1]) if numbers.grads else None))
    return f"for scale: with v and t rounded to bfloat16 eq. 6 has its {moved}; here {offs(first)}"


def known_singles(probe: Probe) -> dict[Variant, tuple[Found, ...]]:
    """The paper, and every deviation by itself in every way in which it is written, with the usual values."""
    batch, patches, _ = probe.v.shape
    ways = [replace(Variant(), **changes) for some in WAYS.values() for changes in some.values()]
    ways += [Variant(sigma=float(s)) for s in dict.fromkeys((*SIGMAS, 1 / patches)) if s != 1 / patches]
    ways += [Variant(tau=tau) for tau in TAUS if abs(math.log(tau) + probe.theta) > 1e-6]
    ways += [Variant(direction=way) for way in ("vt", "tv")]
    ways += [Variant(factor=float(f)) for f in dict.fromkeys((0.5, 2, batch, 1 / batch)) if f != 1]
    ways += [Variant(reduction="mean_all", padded_rows=0.0)]
    return {Variant(): ()} | {fine: found_in(fine) for fine in dict.fromkeys(ways) if fine != Variant()}


def known_pairs(singles: dict[Variant, tuple[Found, ...]]):
    """Settings that hold two deviations, both of which show in the setting."""
    plain = Variant()
    changed = {fine: {name: x for name, x in vars(fine).items() if x != getattr(plain, name)} for fine in singles}
    for (one, a), (two, b) in itertools.combinations(changed.items(), 2):
        if a and b and not set(a) & set(b):
            fine = replace(plain, **a, **b)
            if len(found := found_in(fine)) >= 2 and fine not in (one, two):
                yield fine, found


def other_readings(probe: Probe, read_as: str, has_mask: bool):
    """The file, read otherwise: a mask the other way round, a temperature of another kind."""
    if has_mask and not probe.mask.all():
        yield "if the mask marks padding", replace(probe, mask=~probe.mask)
    x = {"theta": probe.theta, "scale": math.exp(probe.theta), "tau": math.exp(-probe.theta)}[read_as]
    if read_as != "theta":
        yield f"if {read_as} is log(1/tau)", replace(probe, theta=x)
        if x > 1:                                         # exp forgotten: the parameter itself is 1/tau
            yield f"if 1/tau is log({read_as})", replace(probe, theta=math.log(math.log(x)))
    if read_as != "scale" and x > 0:
        yield f"if {read_as} is 1/tau", replace(probe, theta=math.log(x))
    if read_as != "tau" and x > 0:
        yield f"if {read_as} is tau", replace(probe, theta=-math.log(x))
