"""What gives these numbers?  One batch of anybody's training run, with its loss, against every known reading and deviation.

    sparc-ref check batch.npz           (or batch.safetensors)

The file holds  v (B,P,D) patches, t (B,L,D) tokens, mask (B,L) 1 = real token (none: all are), one of theta = log(1/tau),
scale = 1/tau, tau, and loss; and what is known of its gradients: grad_v, grad_t, and grad_theta, grad_scale or grad_tau.
float32 or float64.  For whoever cannot hand over code: no line of it is run here, so nothing is said beyond this batch.
The loss is the fine-grained one, eq. 1's of mean-pooled embeddings, or a weighted sum of both.
"""

import itertools
import json
import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from parity.checker.calling.packing import visible
from parity.checker.diagnosis import variants
from parity.checker.diagnosis.asking import PRECISION, gradient_off, loss_off, simplest
from parity.checker.diagnosis.deviations import DEVIATIONS, Found, words
from parity.checker.diagnosis.matching import simplest_factor
from parity.checker.diagnosis.switches import WAYS, Variant, found_in, variant_of
from parity.checker.dump_file import batch_of, read
from parity.checker.probes import Probe
from sparc_ref import global_loss

PAIRS_SECONDS = 60.0                                      # for pairs of deviations
SIGMAS = (0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05, 0.02, 0.01, 1 / 16, 1 / 49, 1 / 64, 1 / 196, 1 / 256, 1 / 576, 1e-3)
TAUS = (1.0, 0.5, 0.2, 0.1, 0.07, 0.05, 0.02, 0.01)
KINDS = {"eq6": "eq. 6", "listing1": "Listing 1", "eq1": "eq. 1", "total": "eqs. 1 and 6", "explained": "not eq. 6, but known",
         "unexplained": "none of what was computed"}
WEIGHTS = ((1.0, 0.0), (1.0, 1.0), (0.5, 1.0), (0.5, 0.5), (1.0, 0.5))  # of eqs. 1 and 6, where no gradient gives them


@dataclass(frozen=True)
class Match:
    """A reading of the paper, or deviations from it, and how far it is from the numbers: relative, None without gradients."""

    found: tuple[Found, ...]
    loss: float
    gradient: float | None
    how: str = ""                                         # how the file was read, where that is not as it stands
    label: str = ""                                       # of eq. 1 and of totals

    @property
    def name(self) -> str:
        if self.label:
            return self.label
        ids = [d.id for d in self.found]
        each = [f"{d} ({d.way})" if d.way and d.value is None else str(d) for d in self.found]
        named = "Listing 1" if ids == ["reduction.token"] else ", ".join(each) or "eq. 6"
        return f"{named}, {self.how}" if self.how else named

    @property
    def off(self) -> float:
        """The larger of both, to order by."""
        return max(self.loss, self.gradient or 0.0)

    @property
    def of_another_loss(self) -> str:
        """"eq1" | "total" | ""."""
        return "" if not self.label else "total" if "eq. 6" in self.label else "eq1"


@dataclass(frozen=True)
class DumpReport:
    """matches: what gives the numbers, simplest first; nearest: what comes closest, where nothing does.

    tried: how many readings, single deviations and pairs were computed.  tolerance: of loss and gradient, for their precision.
    """

    target: str
    holds: str
    matches: tuple[Match, ...]
    nearest: tuple[Match, ...]
    tried: dict[str, int]
    tolerance: tuple[float, float]
    met: frozenset[str]                                   # of deviations.CONDITIONS
    notes: tuple[str, ...] = ()
    accept: tuple[str, ...] = ()
    seconds: float = 0.0
    gradients: tuple[str, ...] = field(default=())
    batch: int = 1
    patches: int = 196

    @property
    def verdict(self) -> str:
        """"eq6" | "listing1" | "explained" | "unexplained", on this batch."""
        names = [m.name for m in self.matches]
        if not names:
            return "unexplained"
        if "eq. 6" in names or "Listing 1" in names:
            return "eq6" if "eq. 6" in names else "listing1"
        return self.matches[0].of_another_loss or "explained"

    @property
    def title(self) -> str:
        first = self.matches[0] if self.verdict == "explained" else None
        title = first.name if first is not None and not first.found else KINDS[self.verdict]
        return title if self.gradients or not self.matches else f"{title}, by value alone"

    @property
    def exit_code(self) -> int:
        """0: eq. 6, eq. 1 or a sum of both gives these numbers, or what --accept names; else 1."""
        return 0 if self.verdict in ("eq6", "eq1", "total", *self.accept) else 1

    @property
    def summary(self) -> str:
        first = f": {self.matches[0].name}" if self.verdict in ("total", "explained") and self.matches[0].found else ""
        return f"SPARC, on this batch: {self.title}{first}"

    def to_dict(self) -> dict[str, Any]:
        def plain(m):
            numbers = {"loss": finite(m.loss), "gradient": finite(m.gradient)}
            said = says(m, self.patches, self.batch)
            return {"name": m.name, "deviations": [str(d) for d in m.found], **numbers, "words": said}

        return {
            "format": "sparc-dump", "version": 1, "target": self.target, "verdict": self.verdict, "summary": self.summary,
            "exit_code": self.exit_code, "holds": self.holds, "gradients": list(self.gradients),
            "matches": [plain(m) for m in self.matches], "nearest": [plain(m) for m in self.nearest], "tried": self.tried,
            "tolerance": list(self.tolerance), "conditions": sorted(self.met), "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def __str__(self) -> str:
        lines = ["", f"  ON THIS BATCH: {self.title.upper()}", f"  {self.holds}", ""]
        if self.matches:
            first, *rest = self.matches
            near = f"loss to {self.tolerance[0]:.0e}, gradients to {self.tolerance[1]:.0e}, relative"
            lines += [f"  What gives these numbers ({near})",
                      f"    {first.name:44} {offs(first)}"]
            lines += [f"      {line}" for line in says(first, self.patches, self.batch)]
            if rest:
                lines += ["", f"  Cannot be told apart from it on this batch: {len(rest)}"]
                lines += [f"    {m.name:44} {why_hidden(m, self.met)}".rstrip() for m in rest]
        else:
            lines += ["  Nothing that was computed here gives these numbers. Nearest"]
            lines += [f"    {m.name:44} {offs(m)}" for m in self.nearest]
        if self.notes:
            lines += ["", "  Also", *(f"    {note}" for note in self.notes)]
        tried = ", ".join(f"{n:,} {what}" for what, n in self.tried.items() if n)
        return "\n".join([*lines, "", f"  computed here: {tried}; {self.seconds:.1f} s"])


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


def judge(path: Path, accept: tuple[str, ...] = ()) -> DumpReport:
    """The report on one file.  Raises ValueError that names the file and what is wrong with it."""
    start = time.monotonic()
    arrays = read(path)
    probe, loss, grads, read_as = batch_of(path, arrays)
    exact = {np.asarray(x).dtype for name, x in arrays.items() if name != "mask" and np.asarray(x).dtype.kind == "f"}
    tolerance = PRECISION["float64" if exact == {np.dtype(np.float64)} else "float32"]
    tried = {"readings": 0, "single deviations": 0, "pairs": 0}
    notes = []
    if (digits := digits_of(arrays["loss"])) <= 6 and math.isfinite(loss):
        tolerance = max(tolerance[0], 0.5 * 10.0 ** (1 - digits)), tolerance[1]
        notes.append(f"the loss has {digits} digit{'s' * (digits > 1)}, and is compared to as many")
    numbers = Numbers(probe, loss, grads, tolerance)
    singles = known_singles(probe)
    clock = time.monotonic()
    values = {}
    for fine, found in singles.items():
        values[fine] = numbers.made(fine)
        numbers.compare(*values[fine], found)
    tried["readings"], tried["single deviations"] = 2, len(singles) - 2
    if not math.isfinite(loss) and not any(np.isfinite(g).all() for g in grads.values()):
        notes.append("the loss is not finite and no gradient is finite throughout: many things make such numbers")
        numbers.every.clear()
        singles, values = {}, {}
    if not numbers.matches and singles:
        for how, other in other_readings(probe, read_as, "mask" in arrays):
            for found in ((), (Found("reduction.token"),)):
                numbers.compare(*numbers.made(variant_of(found)[0], other), found, how)
                tried["readings"] += 1
    if not numbers.matches and singles:
        tried["readings"] += other_losses(numbers, values[Variant()])
    if not numbers.matches and grads and not np.any(grads.get("theta", 0.0)):
        for tau in constant_temperatures(numbers) if singles else ():
            fine = Variant(tau=tau)
            values[fine], singles[fine] = numbers.made(fine), found_in(fine)
            numbers.compare(*values[fine], singles[fine])
    if not numbers.matches and grads:
        multiples(numbers, singles, values)
    if not numbers.matches and singles:
        tried["pairs"] = pairs(numbers, singles, time.monotonic() - clock, notes)
    matches = list({m.name: m for m in reversed(numbers.matches)}.values())[::-1]
    first = numbers.every[0] if numbers.every else None
    if not matches and first is not None and grads and first.loss < tolerance[0]:
        each = {k: gradients_off({k: grads[k]}, {k: values[Variant()][1][k]}) for k in grads}
        notes.append("the loss is eq. 6's, its gradients are not: " + ", ".join(
            f"that of {k} is right" if x < tolerance[1] else f"that of {k} is off by {x:.0e}" if math.isfinite(x) else
            f"that of {k} is not finite" for k, x in each.items()))
    if not matches and first is not None and math.isfinite(first.off):
        notes.append(in_bfloat16(numbers, values[Variant()], first))
    if any("all gradients times" in m.how for m in matches):
        notes.append("one number times all gradients: loss scaling, gradient accumulation and clipping make such")
    if not grads:
        notes.append("the file holds no gradients: what changes them alone, or fits the loss by chance, is not told apart")
    if probe.mask.sum(1).max() <= 1:
        notes.append("no caption has two tokens: eq. 6 is 0 whatever the embeddings are, and such a batch tells nothing of it")
    order = {m: i for i, m in enumerate(numbers.every)}
    matches.sort(key=lambda m: (len(m.found) > 0, m.name != "Listing 1", len(m.found), order[m]))
    nearest = sorted((m for m in numbers.every if math.isfinite(m.off) and (m.gradient is not None or not grads)),
                     key=lambda m: (m.loss > tolerance[0], float(f"{m.off:.1e}"), len(m.found)))  # simpler ones among equals
    return DumpReport(visible(path), described(probe, arrays, loss, grads, exact), tuple(matches), tuple(nearest[:5]), tried,
                      tolerance, probe.holds, tuple(notes), accept, time.monotonic() - start, tuple(sorted(grads)),
                      len(probe.v), probe.v.shape[1])


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
    if len(probe.v) < 2 or not count.all() or not np.isfinite(fine[0]):
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
    for fine, found in singles.items():
        value, grads = values[fine]
        if not math.isfinite(value) or not value or not (slope := numbers.slopes(grads)):
            continue
        ratio, common = numbers.loss / value, float(np.median(list(slope.values())))
        near = 10 * numbers.tolerance[1]
        alike = all(abs(k / common - 1) < near for k in slope.values())
        right = {leaf: abs(k - 1) < near for leaf, k in slope.items()}
        scaled = {leaf: k * grads[leaf] for leaf, k in slope.items()}
        if alike and abs(ratio / common - 1) < near:      # loss.factor of any size
            factor = simplest_factor(ratio, 1e2 * numbers.tolerance[0])
            if not any(d.id == "loss.factor" for d in found) and abs(factor - 1) > near:
                times = {k: factor * g for k, g in grads.items()}
                numbers.compare(factor * value, times, (*found, Found("loss.factor", factor)))
        elif value_off(numbers.loss, value) < numbers.tolerance[0]:
            if alike and len(slope) > 1:
                numbers.compare(value, scaled, found, f"all gradients times {simplest_factor(common, near):.6g}")
                continue
            more = tuple(Found(*named(leaf, k, theta, near)) for leaf, k in slope.items() if not right[leaf])
            numbers.compare(value, scaled, (*found, *more))


def named(leaf: str, k: float, theta: float, near: float) -> tuple:
    """A gradient that is k times the right one, as the survey has it."""
    if leaf == "theta" and abs(k / -math.exp(theta) - 1) < near:
        return ("gradient.theta.of_tau",)
    if leaf == "theta" and abs(k / math.exp(-theta) - 1) < near:
        return ("gradient.theta.of_scale",)
    return (f"gradient.{leaf}.sign",) if abs(k + 1) < near else (f"gradient.{leaf}.factor", simplest_factor(k, near))


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


# ------------------------------------------------------------------------------------------------------------------- variants


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


# --------------------------------------------------------------------------------------------------------------------- words


def described(probe, arrays, loss, grads, exact) -> str:
    real, all_ = int(probe.mask.sum()), probe.mask.size
    padding = "no padding" if real == all_ else f"{all_ - real} of {all_} tokens are padding"
    kinds = " and ".join(sorted(map(str, exact)))
    given = f"gradients of {', '.join(sorted(grads))}" if grads else "no gradients"
    sizes = f"v {probe.v.shape}, t {probe.t.shape}"
    return f"{sizes}, {padding}, 1/tau {math.exp(probe.theta):.4g}, loss {loss:.6g}, {given}, {kinds}"


def says(m: Match, patches: int, batch: int) -> list[str]:
    """What each deviation is, in words."""
    return [f"{d}: {words(d, patches)}" + " (B)" * (d.id == "loss.factor" and d.value == batch > 2) for d in m.found]


def offs(m: Match) -> str:
    gradient = "" if m.gradient is None else f", gradients by {m.gradient:.1e}"
    return f"loss off by {m.loss:.1e}{gradient}"


def why_hidden(m: Match, met: frozenset[str]) -> str:
    """Conditions of the survey that hide a deviation and that this batch fulfils."""
    if all(DEVIATIONS[d.id].harmless for d in m.found):
        return "(changes nothing anywhere)"
    hidden = [c for d in m.found for c in DEVIATIONS[d.id].hidden_by if c in met]
    return f"(hidden here: {', '.join(dict.fromkeys(hidden))})" if hidden else ""


def finite(x: float | None) -> float | None:
    return float(x) if x is not None and math.isfinite(x) else None
