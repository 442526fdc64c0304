"""Does an explanation hold at the sizes that people use?  Probes of real use, and where it ends if it does not.

Small probes tell deviations apart; what shows at P = 196, 64 captions or 1/tau = 100 alone, they cannot see.  Each probe here
mixes several sizes.  Where one disagrees with the explanation, sizes go back to small ones, one by one, as long as it still
disagrees; what is left is bisected, and both sides of the limit are asked again on fresh numbers.
"""

import math
import time
from dataclasses import dataclass, field, replace

import numpy as np

from parity.checker.diagnosis.asking import Box, gradient_off, loss_off
from parity.checker.diagnosis.clauses import say
from parity.checker.diagnosis.sizes import BASE, KEYS, SIZES, Limit, largest, measure, sized
from parity.checker.diagnosis.traced import follow
from parity.checker.probes import Probe

TOLERANCE = {"float64": (1e-7, 1e-5), "float32": (1e-3, 3e-2)}  # at 1/tau = 100 rounding is a hundred times what it is at 1
SECONDS = 12.0                                            # for all of it; what did not fit was not tried, and is not said to be
SLOW = 4.0                                                # seconds of one call, after which nothing larger is asked
UPSTREAM = 65536.0                                        # where mixed precision starts to scale losses
SCALED = (8, 24, 144, 32, 20.0, 1.0)                      # the probe whose loss is scaled
SINGLE = ((2, 9, 5, 16, 14.3, 1.0), (17, 32, 197, 16, 14.3, 3.0))  # those that are asked in float32 too


@dataclass
class Reach:
    """tried: KEYS, "similarity", "upstream" -> [least, largest]; limits: where it ends; notes: sentences."""

    tried: dict[str, list[float]] = field(default_factory=dict)
    dtypes: list[str] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    small: bool = False                                   # it disagrees at small sizes too
    wrong: float = 0.0                                    # share of the sizes of real use at which it disagrees


class Judge:
    """Compares readings of one loss with what it should be, at any size."""

    def __init__(self, box: Box, read, models, full=False, alone=False):
        self.box, self.read, self.models, self.full, self.alone = box, read, models, full, alone
        self.tol = TOLERANCE[box.dtype()]
        self.known: dict[tuple, tuple[float, float | None] | None] = {}
        self.errors: dict[tuple, str] = {}
        self.start, self.slow = time.monotonic(), math.inf
        self.width = False                                # other widths than 16 do not run
        self.squares = False                              # other numbers of patches than squares do not run

    def probe(self, sizes: dict, seed=0) -> Probe:
        if self.squares:
            sizes = sizes | {"P": max(2, round(math.sqrt(sizes["P"]))) ** 2}
        return sized(**sizes, full=self.full, seed=seed)

    def off(self, sizes: dict, seed=0) -> tuple[float, float | None] | None:
        """How far it is from what it should be; None where there was no answer, and `errors` says why."""
        key = (*sizes.values(), seed)
        if key not in self.known:
            probe = self.probe(sizes, seed)
            start = time.monotonic()
            reading = self.read(probe)
            if time.monotonic() - start > SLOW:
                self.slow = min(self.slow, probe.v.size + probe.t.size)
            if reading.error is not None:
                self.errors[key], self.known[key] = reading.error, None
            else:
                offs = [(loss_off(reading.value, value), gradient_off(reading.grads, grads))
                        for value, grads in self.models(probe)]
                self.known[key] = min(offs, key=lambda o: (o[0], o[1] or 0.0))
        return self.known[key]

    @property
    def base(self) -> dict:
        return BASE | ({"B": 1} if self.alone else {})

    def error(self, sizes: dict) -> str | None:
        """What it raised, None where it gave an answer."""
        self.off(sizes)
        return self.errors.get((*sizes.values(), 0))

    def sound(self) -> dict | None:
        """Small sizes at which it agrees, or else the smallest of those asked."""
        alive = [s for s in self.asked() if not self.wrong(s)]
        if not self.wrong(self.base):
            return self.base
        return min(alive, key=lambda s: s["B"] * (s["P"] + s["L"]) * s["D"], default=None)

    def asked(self) -> list[dict]:
        """Sizes that were answered.  One token has no loss, and of two patches one is the least and one the largest."""
        every = [dict(zip(KEYS, key)) for key, off in self.known.items() if not key[-1] and off is not None]
        return [s for s in every if s["L"] > 1 and s["P"] > 2]

    def alike(self, sizes: dict, key: str, seed: int) -> dict:
        """Sizes at which another seed gives the same similarities."""
        if key != "length":
            return sizes
        one, other = (largest(self.probe(sizes, n)) for n in (0, seed))
        return sizes | {key: sizes[key] * math.sqrt(one / other)}

    def wrong(self, sizes: dict, seed=0) -> bool:
        """It disagrees, or raises where it did not on small sizes."""
        off = self.off(sizes, seed)
        if off is None:
            return not self.unasked(self.errors[(*sizes.values(), seed)])
        return not (off[0] < self.tol[0] and (off[1] is None or off[1] < self.tol[1]))

    def wants_squares(self, sizes: dict) -> bool:
        """Whether it makes a square of the patches: four and nine run, three and eight do not, and the next square runs."""
        if self.squares or math.isqrt(sizes["P"]) ** 2 == sizes["P"]:
            return False
        if [self.error(self.base | {"P": n}) is None for n in (3, 4, 8, 9)] != [False, True, False, True]:
            return False
        self.squares = True
        self.known = {key: off for key, off in self.known.items() if off is not None}
        self.errors.clear()
        return True

    def runs(self, **sizes) -> bool:
        """Whether a small batch of these sizes is answered, on fresh numbers."""
        return self.off(self.base | sizes, seed=1) is not None

    @staticmethod
    def unasked(error: str) -> bool:
        """No answer, which is no fault: it was too slow or too large, or a folder does not hold the batch."""
        return error.startswith(("time:", "memory:", "budget:", "the folder has no", "out."))


def reach(box: Box, read, models, full=False, alone=False, sizes_alone=False, seconds=SECONDS) -> Reach:
    """Ask real sizes and find where the explanation ends.

    read: Probe -> Reading.  models: Probe -> [(value, grads)], what it should be.  full: without padding; alone: B = 1.
    sizes_alone: neither in float32 nor with a scaled loss.
    """
    out, judge = Reach(), Judge(box, read, models, full, alone)
    failing, slow = [], None
    for row in SIZES:
        sizes = dict(zip(KEYS, row)) | ({"B": 1} if alone else {})
        size = sizes["B"] * (sizes["P"] + sizes["L"]) * sizes["D"]
        if size >= judge.slow or time.monotonic() - judge.start > seconds:
            continue
        if judge.width:
            sizes["D"] = 16
        error = judge.error(sizes)
        if error and sizes["D"] != 16 and not judge.unasked(error) and not judge.width:
            tiny = judge.base | {"D": sizes["D"]}
            if judge.error(tiny) and not judge.error(judge.base):
                judge.width, sizes = True, sizes | {"D": 16}  # made for one width
                error = judge.error(sizes)
        if error and not judge.unasked(error) and judge.wants_squares(sizes):
            error = judge.error(sizes)
        if error and judge.unasked(error):
            slow = slow or (sizes if error.startswith("time:") else None)
            continue
        if error is None:
            count(out, sizes, judge.probe(sizes))
        if judge.wrong(sizes):
            failing.append(sizes)
    out.wrong, again = len(failing) / max(len(judge.known), 1), Judge(box, read, models, full, alone)
    if slow:
        where = "B {B}, L {L}, P {P} and D {D}".format(**slow)
        out.notes.append(f"With {where} a call did not end within its limit of time: such sizes were not tried.")
    if judge.width:
        out.notes.append(say(read, "one width", refused=lambda: again.runs(D=16) and not again.runs(D=24)))
    if judge.squares:
        out.notes.append(say(read, "squares", refused=lambda: again.runs(P=16) and not again.runs(P=8) | again.runs(P=15)))
    values = [s for s in failing if (judge.off(s) or (math.inf,))[0] > judge.tol[0]]
    if not values and not sizes_alone:
        scaled_loss(box, read, out, alone)
    if out.limits:                                        # a gradient that cannot grow is wrong wherever it is large
        failing = values
    while failing and len(out.limits) < 3:
        limit = limit_of(judge, failing)
        if limit is None:
            out.small = True
            break
        out.limits.append(limit)
        failing = [s for s in failing if not limit.beyond(judge.probe(s))]
    out.limits = list({x.condition: x for x in reversed(out.limits)}.values())[::-1]  # one of those that are said alike
    out.limits = [replace(x, sharp=x.sharp and (bool(x.beside) or orderly(judge, x, out.limits))) for x in out.limits]
    inside = [s for s in judge.asked() if not any(x.beyond(judge.probe(s)) for x in out.limits)]
    right = not any(judge.wrong(s) for s in inside)
    out.limits = [replace(x, scattered=x.scattered and right and not x.sharp and not x.beside) for x in out.limits]
    if not out.limits and not out.small and not sizes_alone:
        in_float32(box, read, out, alone)
    return out


def count(out: Reach, sizes, probe):
    """Widen the ranges that were tried."""
    for key, x in (sizes | {"P": probe.v.shape[1], "similarity": largest(probe)}).items():
        low, high = out.tried.get(key, (x, x))
        out.tried[key] = [min(low, x), max(high, x)]


MANY = {"B": 24, "L": 24, "P": 36}
OTHER = {"L": "P", "P": "L"}


def limit_of(judge: Judge, failing: list[dict]) -> Limit | None:
    """The limit that the smallest failing probe shows.  None where no smaller size agrees."""
    sizes = dict(min(failing, key=lambda s: s["B"] * (s["P"] + s["L"]) * s["D"]))
    base = judge.sound()
    if base is None:
        return None
    for key in KEYS:
        if sizes[key] != base[key] and judge.wrong(less := sizes | {key: base[key]}):
            sizes = less
    left = [key for key in KEYS if sizes[key] != base[key]]
    holds = fails = 0.0
    for key in left:                                      # of several together, each as small as it can be
        holds, fails = bisect(judge, sizes, key, base[key])
        sizes[key] = fails
    if not left:
        return None
    key = left[-1]
    if len(left) == 1 and key in ("B", "L", "P"):         # what a few rows need not show, many do
        many = sizes | {name: max(sizes[name], n) for name, n in MANY.items() if name != key}
        if holds != base[key] and not judge.wrong(many | {key: base[key]}) and judge.wrong(many | {key: holds}):
            holds, fails = bisect(judge, many | {key: holds}, key, base[key])
            sizes = many | {key: fails}
    good = sizes | {key: holds}
    held, failed = (measure(judge.probe(s), key) for s in (good, sizes))
    limit = Limit(key, held, failed, 0.0, 0.0, None, tuple((k, sizes[k], base[k]) for k in left[:-1]))
    again = all(judge.wrong(judge.alike(sizes, key, seed), seed) and not judge.wrong(judge.alike(good, key, seed), seed)
                for seed in (1, 2))
    within = not any(judge.wrong(judge.alike(good, key, seed), seed) for seed in (1, 2))
    if key in ("B", "L", "P"):                            # odd numbers alone, say
        within = within and not any(judge.wrong(good | {key: n}) for n in (holds - 1, holds - 2, holds - 5) if n > base[key])
    if key in OTHER:
        within = within and not judge.wrong(good | {OTHER[key]: 4 * good[OTHER[key]]})
    if len(left) == 1 and key in OTHER and again:         # a size of the other kind may decide with it
        other, small = OTHER[key], 2 if key == "P" else 3
        again = judge.wrong(sizes | {other: small}) and not judge.wrong(good | {other: 4 * good[other]})
    worst = max([s for s in failing if limit.beyond(judge.probe(s))] or [sizes], key=lambda s: far(judge, s))
    loss, gradient = judge.off(worst) or (math.inf, None)
    return replace(limit, worst=measure(judge.probe(worst), key), loss=loss, gradient=gradient, sharp=again, scattered=within,
                   stage=stage_of(judge, sizes), error=judge.error(worst) or "")


def orderly(judge: Judge, limit: Limit, limits: list[Limit]) -> bool:
    """All that was asked is wrong beyond this limit, and right where it is beyond none."""
    for sizes in judge.asked():
        probe, wrong = judge.probe(sizes), judge.wrong(sizes)
        few = sizes["L"] < 3 or sizes["P"] < 5            # rows with one patch or two: little can go wrong in them
        if few and not wrong:
            continue
        if wrong != limit.beyond(probe) and not (wrong and any(x.beyond(probe) for x in limits)):
            return False
    return True


def far(judge, sizes) -> float:
    off = judge.off(sizes)
    return math.inf if off is None else max(off[0], off[1] or 0.0)


def bisect(judge: Judge, sizes: dict, key: str, good):
    """The last size at which it holds and the first at which it does not."""
    holds, fails = good, sizes[key]
    whole = key in ("B", "L", "P", "D")
    for _ in range(24):
        if abs(fails - holds) <= 1 if whole else abs(math.log(fails / holds)) < 1e-3:
            break
        middle = (holds + fails) // 2 if whole else math.sqrt(holds * fails)
        if judge.wrong(sizes | {key: middle}):
            fails = middle
        else:
            holds = middle
    return holds, fails


def stage_of(judge: Judge, sizes: dict) -> str | None:
    """The stage at which one sample without padding leaves the paper at this size; None where that does not show it."""
    whole = Judge(judge.box, judge.read, judge.models, full=True)
    one = sizes | {"B": 1}
    if not whole.wrong(one) or whole.off(one) is None:
        return None
    records = judge.box.trace(whole.probe(one))
    seen = follow(records, whole.probe(one), loose=judge.box.dtype() == "float32") if records else None
    return None if seen is None or seen.stage == "reduction" else seen.stage


def scaled_loss(box: Box, read, out: Reach, alone=False) -> None:
    """Multiply the loss before its gradient is taken: does the gradient follow?"""
    if box.again is None:
        return
    which, again, tol = read.which, box.again, max(TOLERANCE[box.dtype()][1], 1e-6)
    probe = sized(**dict(zip(KEYS, SCALED)) | ({"B": 1} if alone else {}))

    def gradients(factor):
        answer = again(probe, upstream=factor)
        return {} if answer.error else {k: np.asarray(g) / factor for k, g in answer.grads.get(which, {}).items()}

    def wrong(factor, plain):
        made = gradients(factor)
        return {k for k, g in plain.items() if k in made and (gradient_off({k: made[k]}, {k: g}) or 0.0) > tol}

    plain = gradients(1 / 1024)
    if not plain or not gradients(UPSTREAM):
        return
    out.tried["upstream"] = [1.0, UPSTREAM]
    leaves = wrong(UPSTREAM, plain)
    if not leaves:
        return
    low, high = 1 / 1024, UPSTREAM
    while math.log(high / low) > 1e-3:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if wrong(middle, plain) else (middle, high)
    leaves = wrong(high, plain)
    top = max(float(np.abs(plain[k]).max(initial=0.0)) for k in leaves)
    off = gradient_off(gradients(UPSTREAM), plain)
    sharp = bool(wrong(2 * high, plain)) and not wrong(low / 2, plain)
    out.limits.append(Limit("upstream", low * top, high * top, UPSTREAM * top, 0.0, off, sharp=sharp))


def in_float32(box: Box, read, out: Reach, alone=False) -> None:
    """The same batches in float32: is it the same loss to float32's rounding?"""
    which = read.which
    if box.again is None or box.dtype() != "float64":
        out.dtypes = [box.dtype()]
        return
    out.dtypes = ["float64"]
    tol, grad_tol = TOLERANCE["float32"]
    for row in SINGLE:
        sizes = dict(zip(KEYS, row)) | ({"B": 1} if alone else {})
        probe = sized(**sizes)
        plain = box.read(probe, which)
        answer = box.again(probe, dtype="float32")
        if answer.error and not plain.error and not Judge.unasked(answer.error):
            out.notes.append(f"In float32 it raises {answer.error}.")
        if plain.error or answer.error or which not in answer.losses:
            return
        loss = loss_off(answer.losses[which], plain.value)
        gradient = gradient_off(answer.grads.get(which, {}), plain.grads)
        if not (loss < tol and (gradient is None or gradient < grad_tol)):
            out.limits.append(Limit("float32", 64, 32, 32, loss, gradient))
            return
    out.dtypes.append("float32")
