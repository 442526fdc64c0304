"""A loss whose value is explained and whose gradient is not: which input's gradient is off, where, and what it lacks.

The gradient is taken apart by autograd: every path (through keys, values, minimum, a norm, a direction ...) has a gate, and a
gate lets a share k of the gradient pass.  A gradient is linear in each gate, so that a path's own part is the difference of
two.  The simplest combination that gives what was read is named; held-out probes confirm it like everything else.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from parity.checker.diagnosis import search
from parity.checker.diagnosis.asking import simplest
from parity.checker.diagnosis.deviations import DEVIATIONS, Found, words
from parity.checker.diagnosis.switches import WAYS, Variant
from parity.checker.probes import HELD_OUT, PROBES, Probe

INPUTS = {"v": "patches", "t": "tokens", "theta": "theta", "v_bar": "the image", "t_bar": "the text"}
FINE = ("v", "t", "theta")
ASKED = ("single", "padded", "single_again", "padded_again", "unit_padded", "unpadded", "equal_lengths", "unpadded_again")
SHARES = (0.0, -1.0, 2.0, 0.5)

PATHS = {                                                 # gates -> what takes this way, for the inputs it matters to
    ("queries",): "its path through c", ("keys",): "its path as keys of the similarity",
    ("values",): "its path as values that are averaged", ("t",): "its path as the other side of the logits",
    ("min", "max"): "the paths through minimum and maximum", ("min",): "the path through the minimum",
    ("max",): "the path through the maximum", ("width",): "the path through the range in eq. 2's denominator",
    ("shift",): "the path through the minimum in eq. 2's numerator",
    ("norm_c", "norm_t"): "the paths through the lengths of c and t", ("norm_c",): "the path through the length of c",
    ("norm_t",): "the path through the length of t", ("norm_key",): "the path through the length of patches in the similarity",
    ("vt",): "the direction in which groups pick tokens", ("tv",): "the direction in which tokens pick groups",
    ("own",): "the part of the right pairs", ("others",): "the part of the softmax's denominators",
    ("tau",): "its path through the logits", ("tau_s",): "its path through the similarity",
}  # fmt: skip
UNITS = {                                                 # numbers that a gradient may be off by, of a probe
    "": lambda p: 1.0, "1/tau": lambda p: math.exp(p.theta), "tau": lambda p: math.exp(-p.theta),
    "1/tau^2": lambda p: math.exp(2 * p.theta), "tau^2": lambda p: math.exp(-2 * p.theta),
    "B": lambda p: float(len(p.v)), "1/B": lambda p: 1.0 / len(p.v),
    "L": lambda p: float(p.mask.shape[1]), "1/L": lambda p: 1.0 / p.mask.shape[1],
    "P": lambda p: float(p.v.shape[1]), "1/P": lambda p: 1.0 / p.v.shape[1],
    "the number of tokens": lambda p: float(p.mask.sum()), "1/the number of tokens": lambda p: 1.0 / p.mask.sum(),
}  # fmt: skip


@dataclass(frozen=True)
class Slope:
    """One input's gradient: factor x unit x sum of share x gradient under a setting."""

    leaf: str
    terms: tuple[tuple[float, Variant], ...]
    factor: float = 1.0
    unit: str = ""

    def of(self, probe: Probe) -> np.ndarray:
        total = sum(share * part(probe, o, self.leaf) for share, o in self.terms)
        return self.factor * UNITS[self.unit](probe) * np.asarray(total)


@dataclass
class Wrong:
    """Gradients that are not those of the loss.  slopes: input -> what it is; padding: tokens' gradient there is not zero.

    found is empty where an input's gradient stays unexplained; places say of which, where, and by how much.
    """

    slopes: dict[str, Slope] = field(default_factory=dict)
    padding: bool = False
    flat: bool = False
    found: list[Found] = field(default_factory=list)
    right: list[str] = field(default_factory=list)
    places: list[tuple[str, str]] = field(default_factory=list)
    probe: str = "padded"

    @property
    def place(self) -> str:
        return " ".join(text for _, text in self.places)

    @property
    def explained(self) -> bool:
        return bool(self.found) and not self.place

    def with_flat(self, how: str) -> "Wrong":
        """The same where rows without a range are otherwise."""
        slopes = {leaf: replace(x, terms=tuple((share, replace(o, flat=how)) for share, o in x.terms))
                  for leaf, x in self.slopes.items()}
        return replace(self, slopes=slopes)

    def applied(self, probe: Probe, grads: dict, given: dict) -> dict:
        """A setting's gradients as the box has them."""
        if self.flat and probe.flat:                      # it is known to be wrong there
            return {leaf: given.get(leaf, g) for leaf, g in grads.items()}
        made = grads | {leaf: np.reshape(slope.of(probe), np.shape(grads[leaf])) for leaf, slope in self.slopes.items()}
        if self.padding and "t" in given:
            made["t"] = np.where(probe.mask[..., None], made["t"], given["t"])
        return made


def listed(names) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


DETACHED = {"tokens": ("queries",), "patches": ("keys",), "values": ("values",), "t": ("t",)}


def of_detached(read, o: Variant, tol) -> Wrong:
    """Which input's gradient a detached path is missing from, and that the others are right."""
    probes = [p for p in (*(PROBES[name] for name in ASKED), *HELD_OUT.values()) if usable(read, p, o)]
    whole = replace(o, detach="")
    out, lost = Wrong(), list[str]()
    for leaf in FINE:
        if all(leaf in read(p).grads for p in probes):
            given = [real(p, leaf, read(p).grads[leaf]) for p in probes]
            wanted = [real(p, leaf, part(p, whole, leaf)) for p in probes]
            (out.right if near(probes, given, wanted, o, tol) else lost).append(leaf)
    if len(lost) == 1 and o.detach in DETACHED:
        out.places.append((lost[0], f"The gradient for {INPUTS[lost[0]]} lacks {PATHS[DETACHED[o.detach]]}."))
    return out


def part(probe: Probe, o: Variant, leaf: str) -> np.ndarray:
    return search.evaluated(probe, o).grads["fine"][leaf]


def of_pairs(part, probes, tol: float) -> Wrong:
    """A global loss whose value is explained: whose gradient is right, whose is a multiple of it, whose is something else."""
    out = Wrong()
    for leaf in INPUTS:
        pairs = [(part.read(p).grads.get(leaf), part.own_gradients(p).get(leaf)) for p in probes]
        pairs = [(np.ravel(a), np.ravel(b)) for a, b in pairs if a is not None and b is not None]
        shares = by_direction(part, probes, leaf, tol)
        top = max((np.abs(b).max(initial=0.0) for _, b in pairs), default=0.0)
        if not pairs or top < 1e-12:                      # no part of this loss
            continue
        factors = [float(a @ b / (b @ b)) for a, b in pairs if np.any(b)]
        k = float(simplest(factors[0] - 1e-7, factors[0] + 1e-7))
        if all(np.abs(a - b).max() <= tol * top for a, b in pairs):
            out.right.append(leaf)
        elif all(np.abs(a - k * b).max() <= 10 * tol * top for a, b in pairs):
            how = "zero" if abs(k) < tol else f"{k:.6g} times what it should be"
            out.places.append((leaf, f"The gradient for {INPUTS[leaf]} is {how}."))
        elif shares is not None:
            out.places.append((leaf, f"The gradient for {INPUTS[leaf]} is {said_shares(shares)}."))
        else:
            off = max(float(np.abs(a - b).max()) for a, b in pairs) / top
            out.places.append((leaf, f"The gradient for {INPUTS[leaf]} is off by up to {off:.3g} of its largest entry."))
    return out


DIRECTIONS = {"vt": "in which images pick texts", "tv": "in which texts pick images"}


def by_direction(part, probes, leaf: str, tol: float) -> tuple[float, float] | None:
    """The shares of the two directions' gradients that make up what is read; None where none do, or one direction is all."""
    o = part.how.pairs
    if o is None or o.direction != "both":
        return None
    rows = []
    for p in probes:
        given = part.read(p).grads.get(leaf)
        made = [search.evaluated(p, replace(o, direction=way)).grads["global"].get(leaf) for way in DIRECTIONS]
        parts = [part.scale * 0.5 * np.ravel(g) for g in made if g is not None]
        if given is not None and len(parts) == len(DIRECTIONS):
            rows.append(np.stack([np.ravel(given), *parts]))
    if not rows or (leaf == "theta" and len(rows) < 3):
        return None
    given, *made = np.concatenate(rows, 1)
    basis = np.stack(made, 1)
    shares, *_ = np.linalg.lstsq(basis, given, rcond=None)
    if np.linalg.cond(basis) > 1e6 or np.abs(basis @ shares - given).max() > 10 * tol * np.abs(basis).max():
        return None
    a, b = (float(simplest(x - 1e-6, x + 1e-6)) if abs(x) > 1e-6 else 0.0 for x in shares)
    return a, b


def said_shares(shares: tuple[float, float]) -> str:
    ways = list(DIRECTIONS.values())
    for i, share in enumerate(shares):
        if share == 0 and shares[1 - i] == 1:
            return f"that of the direction {ways[1 - i]} alone"
    return " and ".join(f"{share:.6g} times that of the direction {way}" for share, way in zip(shares, ways))


def explain(read, o: Variant, tol: float, lacking=()) -> Wrong:
    """What is wrong with the gradients of a loss whose value o explains.  lacking: inputs that get none, said already."""
    out = Wrong()
    probes = [p for p in (PROBES[name] for name in ASKED) if usable(read, p, o)]
    if not probes:
        out.places.append(("", "Its gradients are finite on no batch."))
        return out
    for leaf in FINE:
        if leaf in lacking or not all(leaf in read(p).grads for p in probes):
            continue
        given = [real(p, leaf, read(p).grads[leaf]) for p in probes]
        wanted = [real(p, leaf, part(p, o, leaf)) for p in probes]
        if near(probes, given, wanted, o, tol):
            out.right.append(leaf)
            continue
        if not any(np.any(g) for g in given):
            out.found.append(Found("edge.no_gradient", leaf))
            out.slopes[leaf] = Slope(leaf, ((0.0, o),))
            continue
        said = next(named(probes, given, leaf, o, tol), None)
        if said is None:
            out.places.append((leaf, where(probes, given, wanted, leaf)))
            out.probe = worst(probes, given, wanted)
            continue
        out.slopes[leaf] = said[1]
        out.found += said[0]
    at_padding(read, probes, o, tol, out)
    out.right = [leaf for leaf in out.right if all(
        near([p], [real(p, leaf, read(p).grads[leaf])], [real(p, leaf, part(p, o, leaf))], o, tol)
        for p in HELD_OUT.values() if usable(read, p, o) and leaf in read(p).grads)]
    return out


def on_flat_rows(read, o: Variant, tol, wrong: Wrong, probes) -> None:
    """Rows without a range: the loss is right there, is its gradient?"""
    for p in probes:
        if not usable(read, p, o):
            continue
        given, grads = read(p).grads, search.evaluated(p, o).grads["fine"]
        made = wrong.applied(p, grads, given)
        if any(not near([p], [np.reshape(g, np.shape(made[leaf]))], [made[leaf]], o, tol) for leaf, g in given.items()
               if leaf in FINE):
            wrong.flat = True
            wrong.found.append(Found("gradient.flat_rows"))
            return


def usable(read, probe, o) -> bool:
    reading = read(probe)
    return reading.error is None and reading.finite and bool(reading.grads) and not reading.nan_gradient and all(
        np.isfinite(g).all() for g in search.evaluated(probe, o).grads["fine"].values())


def real(probe, leaf, g):
    """A gradient without what padding gets."""
    g = np.reshape(g, np.shape(getattr(probe, leaf)))
    return np.where(probe.mask[..., None], g, 0.0) if leaf == "t" else g


def scale_of(probe, o, want):
    top = max(np.abs(g).max(initial=0.0) for g in search.evaluated(probe, o).grads["fine"].values())
    return max(np.abs(want).max(initial=0.0), 1e-3 * top, 1e-6)


def near(probes, given, wanted, o, tol) -> bool:
    return all(np.abs(g - w).max(initial=0.0) <= tol * scale_of(p, o, w) for p, g, w in zip(probes, given, wanted))


# ------------------------------------------------------------------------------------------------- what it may be


def named(probes, given, leaf, o, tol) -> Iterator[tuple[list[Found], Slope]]:
    """Explanations of one input's gradient, the simplest first."""
    few = len(probes) if leaf == "theta" else 2           # a number needs many probes, an array few

    def fits(slope):
        return all(near([p], [g], [real(p, leaf, slope.of(p))], o, tol) for p, g in zip(probes, given))

    def with_factor(terms):
        """The slope with the factor that fits the first probes, if there is one."""
        parts = [real(p, leaf, Slope(leaf, terms).of(p)) for p in probes[:few]]
        if not any(np.any(g) for g in parts):
            return None
        for unit, number in UNITS.items():
            made = [number(p) * g for p, g in zip(probes, parts)]
            below = sum(float((g * g).sum()) for g in made)
            k = sum(float((g * w).sum()) for g, w in zip(made, given)) / below
            if near(probes[:few], given, [k * g for g in made], o, max(10 * tol, 1e-6)):
                wide = max(30 * tol, 1e-9) * abs(k)
                for factor in (float(simplest(k - wide, k + wide)), k):
                    slope = Slope(leaf, terms, factor, unit)
                    if factor and fits(slope):
                        return slope
        return None

    slope = with_factor(((1.0, o),))
    if slope is not None:
        yield [factor_of(leaf, slope)], slope
    gates = [g for g in PATHS if matters(probes[:few], g, leaf, o)]
    gates = [g for g in gates if all((name,) in gates for name in g)]  # the maximum alone carries nothing, say
    singles = []
    for gate in gates:                                    # one path, with some share of the gradient
        shut = gated(o, {gate: 0.0})
        for share in SHARES:
            terms = ((share, o), (1 - share, shut))
            slope = Slope(leaf, terms)
            if fits(slope):
                yield [path(leaf, gate, share)], slope
            singles.append((gate, share, terms))
    for gate in gates:                                    # any share, by least squares
        any_share = least_squares(probes[:few], given, leaf, o, gated(o, {gate: 0.0}))
        if any_share is not None:
            slope = Slope(leaf, ((any_share, o), (1 - any_share, gated(o, {gate: 0.0}))))
            if fits(slope):
                yield [path(leaf, gate, any_share)], slope
    for gate, share, terms in singles:
        slope = with_factor(terms)
        if slope is not None:
            yield [path(leaf, gate, share), factor_of(leaf, slope)], slope
    for one, two in itertools.combinations([g for g in gates if len(g) == 1], 2):
        yield from two_paths(one, two, leaf, o, fits, with_factor)
    yield from of_another(leaf, o, fits)
    for three in itertools.combinations([g for g in gates if len(g) == 1], 3) if leaf != "theta" else ():
        slope = Slope(leaf, ((1.0, gated(o, dict.fromkeys(three, 0.0))),))
        if near(probes[:1], given, [real(probes[0], leaf, slope.of(probes[0]))], o, tol) and fits(slope):
            yield [path(leaf, gate, 0.0) for gate in three], slope


def two_paths(one, two, leaf, o, fits, with_factor):
    """Both of two paths, or what takes the one and then the other."""
    open_ = {(a, b): gated(o, {one: a, two: b}) for a, b in itertools.product((1.0, 0.0), repeat=2)}
    for a, b in itertools.product(SHARES, repeat=2):
        shares = {(1.0, 1.0): a * b, (1.0, 0.0): a * (1 - b), (0.0, 1.0): (1 - a) * b, (0.0, 0.0): (1 - a) * (1 - b)}
        terms = tuple((share, open_[way]) for way, share in shares.items())
        if fits(slope := Slope(leaf, terms)):
            yield [path(leaf, one, a), path(leaf, two, b)], slope
    for share in SHARES:
        k = share - 1
        terms = ((1 + k, o), (-k, open_[1.0, 0.0]), (-k, open_[0.0, 1.0]), (k, open_[0.0, 0.0]))
        if fits(slope := Slope(leaf, terms)):
            yield [joint(leaf, one, two, share)], slope


def of_another(leaf, o, fits):
    """The gradient of a loss with one more deviation."""
    for id_, ways in WAYS.items():
        if id_.startswith(("edge.", "minmax.nan")) or DEVIATIONS[id_].harmless or id_ == "similarity.patches_group":
            continue
        for way, switches in ways.items():
            other = replace(o, **switches)
            if other != o and fits(slope := Slope(leaf, ((1.0, other),))):
                yield [Found(f"gradient.{leaf}.of_another", words(Found(id_, way=way)))], slope
                return


def gated(o: Variant, shares: dict) -> Variant:
    return replace(o, gates=tuple((name, k) for gate, k in shares.items() for name in gate))


def matters(probes, gate, leaf, o) -> bool:
    """Is there anything on this path, and is it not all there is?"""
    for p in probes:
        whole, rest = (real(p, leaf, part(p, x, leaf)) for x in (o, gated(o, {gate: 0.0})))
        if np.abs(whole - rest).max() > 1e-9 * np.abs(whole).max() and np.abs(rest).max() > 1e-9 * np.abs(whole).max():
            return True
    return False


def least_squares(probes, given, leaf, o, shut) -> float | None:
    whole, rest = (np.concatenate([np.ravel(real(p, leaf, part(p, x, leaf))) for p in probes]) for x in (o, shut))
    got, own = np.concatenate([np.ravel(g) for g in given[: len(probes)]]), whole - rest
    share = float(own @ (got - rest) / (own @ own))
    return float(simplest(share - 1e-7 * abs(share), share + 1e-7 * abs(share))) if share else None


# ------------------------------------------------------------------------------------------------- how it is said


def factor_of(leaf, slope) -> Found:
    if slope.factor == -1 and not slope.unit:
        return Found(f"gradient.{leaf}.sign")
    if leaf == "theta" and (slope.factor, slope.unit) == (-1.0, "1/tau"):
        return Found("gradient.theta.of_tau")
    if leaf == "theta" and (slope.factor, slope.unit) == (1.0, "tau"):
        return Found("gradient.theta.of_scale")
    if not slope.unit:
        return Found(f"gradient.{leaf}.factor", slope.factor)
    return Found(f"gradient.{leaf}.factor", slope.unit if slope.factor == 1 else f"{slope.factor:.6g} x {slope.unit}")


def path(leaf, gate, share) -> Found:
    if share == 0:
        return Found(f"gradient.{leaf}.path", PATHS[gate])
    how = "has the wrong sign" if share == -1 else f"counts {share:.6g} times"
    return Found(f"gradient.{leaf}.part", f"{PATHS[gate]} {how}")


def joint(leaf, one, two, share) -> Found:
    both = f"{PATHS[one]}, as far as it then takes {PATHS[two]},"
    if share == 0:
        return Found(f"gradient.{leaf}.path", both.rstrip(","))
    return Found(f"gradient.{leaf}.part", f"{both} {'has the wrong sign' if share == -1 else f'counts {share:.6g} times'}")


def worst(probes, given, wanted) -> str:
    return max(zip(probes, given, wanted), key=lambda x: np.abs(x[1] - x[2]).max() / max(np.abs(x[2]).max(), 1e-12))[0].name


def where(probes, given, wanted, leaf) -> str:
    """An input's gradient that nothing explains: by how much it is off, and at which entries."""
    name = worst(probes, given, wanted)
    probe, got, want = next(x for x in zip(probes, given, wanted) if x[0].name == name)
    off = np.abs(got - want)
    size = off.max() / max(np.abs(want).max(), 1e-12)
    said = f"The gradient for {INPUTS[leaf]} is off by up to {size:.3g} of its largest entry (batch {name})"
    if leaf == "theta":
        return f"{said}; no path or factor of it explains that."
    rows = off.max(-1) > 1e-6 * np.abs(want).max()        # (B,P) or (B,L)
    every = probe.mask if leaf == "t" else np.ones(rows.shape, bool)
    if leaf == "v" and not rows.all():
        s = np.where(probe.mask[..., None], probe.t @ np.swapaxes(probe.v, 1, 2), np.nan)
        for what, pick in (("likest", np.nanargmax), ("least alike", np.nanargmin)):
            at = np.zeros(rows.shape, bool)
            for i, j in zip(*np.nonzero(probe.mask)):
                at[i, pick(s[i, j])] = True
            if not (rows & ~at).any():
                return f"{said}, only at patches that are the {what} of a token; no combination of its parts explains it."
    return f"{said}, at {rows[every].sum()} of {every.sum()} {INPUTS[leaf]}; no combination of its parts explains it."


def at_padding(read, probes, o, tol, out):
    """Padded tokens' gradient, which is 0 wherever padding has no part in the loss."""
    wrong = False
    for p in probes:
        given, want = read(p).grads.get("t"), out.slopes["t"].of(p) if "t" in out.slopes else part(p, o, "t")
        if given is None or p.mask.all():
            continue
        got, want = (np.reshape(g, p.t.shape)[~p.mask] for g in (given, want))
        if np.abs(got - want).max() > tol * scale_of(p, o, want):
            if np.abs(want).max() > 1e-12:
                if not out.places:
                    out.places.append(("t", f"The gradient for tokens is off at padding alone (batch {p.name})."))
                out.probe = p.name
                return
            wrong = True
    if wrong:
        out.padding = True
        out.found.append(Found("gradient.padding_not_zero"))
        out.right = [leaf for leaf in out.right if leaf != "t"]
