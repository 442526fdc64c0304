"""Which of the arrays that an implementation makes is which stage, and where does it leave the paper?

One sample without padding is traced.  Every stage is computed from the latest of their arrays that was recognised, so that a
difference is charged to the step that made it and not to those after it.  Rows may differ by a positive factor, arrays by
transposition and by dimensions of size 1; a loop's arrays are stacked.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from parity.checker.diagnosis.deviations import Found
from parity.checker.probes import Probe

ORDER = ("similarity", "minmax", "threshold", "weights", "grouping", "norm", "logits", "loss", "reduction")


@dataclass
class Followed:
    """stage: the first that leaves the paper, None where all of them are found; where: the last array that was ours.

    kind: "cosine" where the similarity is that of l2-normalised patches.
    seen: stage -> where it was recognised; harmless: what differs without effect.
    taken: where arrays are made that go on in place of ours, which are there too.
    softmax: whether a softmax is seen to take our logits, in both directions.
    every: whether operations inside a line are seen too, so that what is not found is not there.
    sure: whether the weights that made their groups tell the stage.
    many: how many patches its similarities have, where that is not how many were given.
    cut: how another threshold shows in the weights: "shrunk", less sigma; "bent", other values below 0.6.
    """

    stage: str | None = None
    where: str = ""
    seen: dict[str, str] = field(default_factory=dict)
    harmless: tuple[Found, ...] = ()
    kind: str = ""
    taken: str = ""
    softmax: bool = False
    every: bool = False
    sure: bool = False
    many: int = 0
    cut: str = ""


def shaped(records, rows: int, columns: int | None) -> Iterator[tuple[int, str, np.ndarray]]:
    """Their arrays as (rows, columns), or (rows,) where columns is None: (time, where, array)."""
    wanted = (rows,) if columns is None else (rows, columns)
    loops: dict[str, list[tuple[int, np.ndarray]]] = {}
    for time, (where, x) in enumerate(records):
        x = np.squeeze(np.asarray(x, dtype=np.float64))
        if x.shape == wanted:
            yield time, where, x
        if len(wanted) == 2 and x.shape == wanted[::-1]:
            yield time, where, x.T
        if len(wanted) == 2 and x.shape in ((columns,), (1, columns)):
            loops.setdefault(where, []).append((time, x.reshape(-1)))
    for where, turns in loops.items():
        if len(turns) == rows:
            yield turns[-1][0], where, np.stack([x for _, x in turns])


def rows_alike(x, wanted, tol) -> bool:
    """Equal up to a positive factor per row."""
    if not np.isfinite(x).all():
        return False
    a, b = (np.linalg.norm(y, axis=-1, keepdims=True) for y in (x, wanted))
    if (a == 0).any() or (b == 0).any():
        return bool(np.abs(x - wanted).max() < tol)
    return bool(np.abs(x / a - wanted / b).max() < tol)


def near(x, wanted, tol) -> bool:
    return bool(np.isfinite(x).all() and np.abs(x - wanted).max() < tol * max(1.0, np.abs(wanted).max()))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def min_max(s):
    lo = s.min(-1, keepdims=True)
    with np.errstate(all="ignore"):
        return (s - lo) / (s.max(-1, keepdims=True) - lo)


def log_softmax(z):
    top = z.max(-1, keepdims=True)
    return z - top - np.log(np.exp(z - top).sum(-1, keepdims=True))


@np.errstate(all="ignore")                               # their arrays may hold NaN and infinity
def follow(records, probe: Probe, sigmas=(), taus=(), loose=False) -> Followed | None:
    """Walk through the stages.  None where not even arrays of the similarity's shape are there.

    probe: one sample, no padding.  sigmas, taus: numbers that the box is known to hold.  loose: float32.
    """
    tol = 2e-4 if loose else 1e-7
    v, t = probe.v[0], probe.t[0]
    n, p, d = len(t), len(v), v.shape[1]
    maps = list(shaped(records, n, p))
    if not maps:
        return other_patches(records, v, t, tol)
    out = Followed(every=any(where.endswith("()") for where, _ in records))
    scales = [math.exp(probe.theta), *(1 / tau for tau in taus)]
    dots = {"": t @ v.T, "cosine": t @ unit(v).T}
    s_hats = {kind: min_max(s) for kind, s in dots.items()}

    # similarity: any array whose min-max is ours, itself not min-max yet
    ranged = [m for m in maps if np.ptp(m[2], -1).min() > 0]
    start = next(((i, where, x, kind) for i, where, x in ranged for kind in dots if near(min_max(x), s_hats[kind], tol)), None)
    if start is None:
        out.stage = "similarity"
        return out
    time, out.where, s, out.kind = start
    kind = out.kind
    out.seen["similarity"] = out.where
    out.harmless = harmless_factors(s, dots[kind], t, scales, tol)
    later = [m for m in maps if m[0] >= time]

    s_hat = min_max(s)
    alike_h = [m for m in later if rows_alike(m[2], s_hat, tol) and m[2].min() > -tol]
    h = next((m for m in alike_h if near(m[2], s_hat, tol)), alike_h[0] if alike_h else None)
    if h is None:                                         # min and max of something else?  Then the similarity was changed
        for i, where, x in ranged:
            if near(min_max(x), s_hat, tol) or is_order(x):
                continue
            if any(j > i and near(y, min_max(x), tol) for j, _, y in maps):
                out.stage, out.taken = "similarity", where
                return out
    else:
        for i, where, x in later:                         # another range, and the threshold is put to it
            stretched = rows_alike(x, s_hat, tol) and not near(x, s_hat, tol)
            if stretched and cut_at(later, i, x, 1 / p, tol) and not cut_at(later, -1, s_hat, 1 / p, tol):
                out.stage, out.taken = "minmax", where
                return out
        time, out.where = h[0], h[1]
        out.seen["minmax"] = out.where

    thresholds = [1 / p, *sigmas]
    sparse = {sigma: np.where(s_hat >= sigma, s_hat, 0.0) for sigma in thresholds}
    sharp = {sigma: x for sigma, x in sparse.items() if (x != s_hat).any()}
    cut = next(
        ((i, where, x, sigma) for i, where, x in later for sigma in sharp if rows_alike(x, sparse[sigma], tol)), None
    )
    if cut is not None:
        out.seen["threshold"] = out.where = cut[1]
        out.seen.setdefault("minmax", cut[1])
    else:                                                 # what passes may be known without eq. 3's own array
        gates = {sigma: s_hat >= sigma for sigma in sharp}
        gate = next(((i, where, sigma) for i, where, x in later for sigma in sharp if is_gate(x, gates[sigma])), None)
        shrunk = gate is not None and any(rows_alike(x, np.maximum(s_hat - gate[2], 0), tol) for _, _, x in later)
        if gate is not None and not shrunk and any(is_cut(x, gates[gate[2]]) for i, _, x in later if i > gate[0]):
            out.seen.setdefault("minmax", gate[1])
            out.seen["threshold"] = out.seen["gate"] = out.where = gate[1]
    s_til = [cut[2]] if cut is not None else [*sparse.values(), s_hat]
    last_weights = [(i, where, x) for i, where, x in later if any(rows_alike(x, y, tol) for y in s_til)]
    for _i, _where, x in last_weights:
        if near(x.sum(-1), np.full(n, float(p)), tol) and near(x.mean(-1), np.ones(n), tol):
            out.harmless += (Found("weights.mean"),)
            break
    if any(near(x.sum(-1), np.ones(n), tol) for _, _, x in last_weights):
        out.seen["weights"] = next(where for _, where, x in last_weights if near(x.sum(-1), np.ones(n), tol))
    values = {"": v, "unit": unit(v)}
    groups = [y @ value for y in s_til for value in values.values()]
    wide = list(shaped(records, n, d))
    made = next(((i, where, x) for i, where, x in wide if any(rows_alike(x, c, tol) for c in groups)), None)
    if made is None and cut is not None:                  # the weights are ours, what they average is not
        averaged = [y for _, _, y in shaped(records, p, d)]
        if any(rows_alike(c, cut[2] @ y, tol) for _, _, c in wide for y in averaged):
            out.stage = "grouping"
            return out
    return _after_weights(out, records, probe, made, groups, later, wide, scales, tol)


def other_patches(records, v, t, tol) -> Followed | None:
    """Similarities with another number of patches than was given: some of them, or what was made of them."""
    arrays = [(where, np.squeeze(np.asarray(x, dtype=np.float64))) for where, x in records]
    s = t @ v.T
    made = [y for _, y in arrays if y.ndim == 2 and y.shape[1] == v.shape[1] and not combines(t, y, tol)]
    for where, x in arrays:
        if x.ndim != 2 or len(x) != len(t) or x.shape[1] in (1, len(t), len(v), v.shape[1]):
            continue
        some = all(any(near(column, other, tol) for other in s.T) for column in x.T)
        if some or any(len(y) == x.shape[1] and near(x, t @ y.T, tol) for y in made):
            return Followed("similarity", where, many=x.shape[1])
    return None


def by_weights(groups, v, s_hat, tol) -> str | None:
    """What the weights tell which make one of these arrays of v: a stage; "shrunk" or "bent", thresholds of another kind;
    "grouping" where no weights make any of them.

    Of fewer patches than dimensions the weights of a sum can be had back.  None: they tell nothing.
    """
    if len(v) >= v.shape[1]:
        return None
    sums = [c for c in groups if combines(v, c, tol)]
    if groups and not sums:
        return "grouping"
    for c in sums:
        a = np.linalg.lstsq(v.T, c.T, rcond=None)[0].T
        if (a.max(-1) <= 0).any() or rows_alike(a, np.ones_like(a), tol):
            continue
        a = a / a.max(-1, keepdims=True)
        sigma, kept, none = 1 / len(v), s_hat >= 1 / len(v), np.abs(a) < 1e3 * tol
        same = np.isclose(a, s_hat, rtol=0, atol=1e3 * tol)
        shrunk = near(a, np.maximum(s_hat - sigma, 0) / (1 - sigma), 1e3 * tol)
        if shrunk:
            return "shrunk"                               # eq. 2's values less sigma
        if (same | none | ~kept).all():
            return "threshold"                            # eq. 2's values, of which others are kept
        order = np.argsort(s_hat, None)
        if (np.diff(a.ravel()[order]) > -1e3 * tol).all():  # of s_hat alone, in all rows
            return "weights" if (none == ~kept).all() or not same[s_hat > 0.6].all() else "bent"
        return "minmax"
    return None


def combines(v, c, tol) -> bool:
    """Whether every row of c is a sum of rows of v, with some weights."""
    return near(np.linalg.lstsq(v.T, c.T, rcond=None)[0].T @ v, c, tol)


def cut_at(maps, start, x, sigma, tol) -> bool:
    """Whether x with what is below sigma dropped is made after `start`."""
    cut = np.where(x >= sigma, x, 0.0)
    return bool((cut != x).any() and any(i > start and rows_alike(y, cut, tol) for i, _, y in maps))


def is_cut(x, passed) -> bool:
    """Numbers where a similarity passes, and exactly 0 where it does not."""
    return bool((x[~passed] == 0).all() and not np.isin(x, (0.0, 1.0)).all())


def is_order(x) -> bool:
    """Places 0, 1, ... in each row, as argsort gives them: a step of its own, no similarity."""
    return bool((np.sort(x, -1) == np.arange(x.shape[-1])).all())


def is_gate(x, passed) -> bool:
    """True where a similarity passes; or true where it does not."""
    return bool(np.isin(x, (0.0, 1.0)).all() and ((x == passed).all() or (x != passed).all()))


def _after_weights(out, records, probe, made, groups, later, wide, scales, tol) -> Followed:
    """From the groups to the loss."""
    v, t = probe.v[0], probe.t[0]
    n = len(t)
    if made is None:
        other = any(rows_alike(c, x @ value, tol) for _, _, x in later for value in (v, unit(v)) for _, _, c in wide)
        missing = [stage for stage in ("minmax", "threshold") if stage not in out.seen]
        told = by_weights([c for _, _, c in wide if not combines(t, c, tol)], v, min_max(t @ v.T), tol)
        out.cut, told = told if told in ("shrunk", "bent") else "", "threshold" if told in ("shrunk", "bent") else told
        if told == "grouping" or missing:
            out.sure = told is not None and ORDER.index(told) >= ORDER.index((missing or ["weights"])[0])
            out.stage = told if told and out.sure else missing[0]
        else:                                             # other weights that average patches, or weights that are ours
            out.stage = "weights" if other or "weights" not in out.seen else "grouping"
        return out
    for stage in ("minmax", "threshold", "weights"):
        out.seen.setdefault(stage, made[1])
    out.seen["grouping"] = out.where = made[1]
    c = made[2]
    square = list(shaped(records, n, n))
    pairs = [(a, b) for a in (c, unit(c)) for b in (t, unit(t))]
    logits = [scale * (a @ b.T) for scale in scales for a, b in pairs]
    found = next(((i, where, x) for i, where, x in square for z in logits if near(x, z, tol) or near(x.T, z, tol)), None)
    cosine = unit(c) @ unit(t).T
    if found is None:
        return _before_logits(out, records, c, t, wide, square, scales, cosine, tol)
    out.seen["norm"] = out.seen["logits"] = out.where = found[1]
    z = found[2]
    log_p = [log_softmax(z), log_softmax(z.T)]
    rows = [np.diagonal(x) for x in log_p]
    both = rows[0] + rows[1]
    wanted = [sign * x for sign in (1, -1) for x in (*rows, both, both / 2)]
    ce = [where for _, where, x in shaped(records, n, None) if any(near(x, y, tol) for y in wanted)]
    means = [-rows[0].mean(), -rows[1].mean(), -both.mean() / 2, -rows[0].sum(), -rows[1].sum()]
    whole = [where for where, x in records if np.size(x) == 1 and any(near(np.asarray(x), y, tol) for y in means)]
    diagonal = [
        where for _, where, x in square if any(near(np.diagonal(x), y, tol) for y in wanted)
    ]
    made = pieces(records)
    out.softmax = enters(made, z, tol) and enters(made, z.T, tol)
    out.taken = "" if out.softmax else other_logits(made, z, tol)
    if out.taken:
        out.stage = "logits"
    elif ce or whole or (diagonal and not out.softmax):
        out.seen["loss"] = out.where = (ce or whole or diagonal)[0]
        out.stage = "reduction"
    else:
        out.stage = "loss"
    return out


def pieces(records) -> list[tuple[int, str, np.ndarray]]:
    """(time, where, array): all arrays, those that hold both directions taken apart."""
    made = []
    for time, (where, x) in enumerate(records):
        x = np.squeeze(np.asarray(x, dtype=np.float64))
        made += [(time, where, y) for y in (x if x.ndim == 3 else [x])]
    return made


def enters(made, y, tol, start=-1) -> bool:
    """Whether what a softmax makes of y is there: itself, its logarithm or the normaliser."""
    with np.errstate(all="ignore"):
        total = np.log(np.exp(y - y.max(-1, keepdims=True)).sum(-1, keepdims=True)) + y.max(-1, keepdims=True)
        wanted = (y - total, np.exp(y - total), total[:, 0])
    return any(i > start and (alike(x, w, tol) or alike(x, w.T, tol)) for i, _, x in made for w in wanted)


def other_logits(made, z, tol) -> str:
    """Where an array is made of z that a softmax takes; "" where there is none."""
    for i, where, x in made:
        if x.ndim == 2 and len(x) == len(z) and x.shape[1] >= len(z) and np.isfinite(x.max(-1)).all():
            for y in (x, x.T) if x.shape == z.shape else (x,):
                if any(made_from(y, form, tol) for form in (z, z.T)) and enters(made, y, tol, i):
                    return where
    return ""


def alike(x, y, tol) -> bool:
    """Equal where they are no mask: infinite or hugely negative together."""
    if x.shape != y.shape:
        return False
    low = (x < -1e3, y < -1e3)
    return bool((low[0] == low[1]).all() and not low[0].all() and near(np.where(low[0], 0, x), np.where(low[1], 0, y), tol))


def made_from(y, z, tol) -> bool:
    """Another array than z, which keeps some of its entries or their order; that the own pair alone is dropped is no such."""
    square, n = y[:, :len(z)], len(z)
    same = np.isclose(square, z, rtol=tol, atol=tol)
    if y.shape == z.shape and (alike(y, z, tol) or alike(y, z.T, tol)):
        return False
    if (same | np.eye(n, dtype=bool)).all() and (np.diagonal(square) < -1e3).all():
        return False
    order = (np.argsort(square, None, kind="stable") == np.argsort(z, None, kind="stable")).all()
    return bool(same.any() or (order and y.shape == z.shape))


def _before_logits(out, records, c, t, wide, square, scales, cosine, tol) -> Followed:
    """Groups are ours and logits are not: which of the steps between them?"""
    known = [x for _, _, x in wide if rows_alike(x, c, tol)]
    tokens = [t, *(x for _, _, x in wide if rows_alike(x, t, tol))]
    others = [x for _, _, x in wide if not rows_alike(x, c, tol) and not rows_alike(x, t, tol)]
    plain = [x for _, _, x in square] + [x.T for _, _, x in square]
    exact = any(near(x, unit(c), tol) for x in known) and any(near(x, unit(t), tol) for x in tokens)

    def made_of(a, b):
        return any(near(z, scale * (a @ b.T), tol) for z in plain for scale in (1.0, *scales))

    if any(made_of(x, b) or made_of(unit(x), unit(b)) for x in others for b in tokens):
        out.stage = "grouping"                            # something else than the groups meets the tokens
    elif exact or any(near(z, cosine, tol) for z in plain):
        for _, where, x in square:
            if near(x, cosine, tol) or near(x.T, cosine, tol):
                out.seen["cosine"] = out.where = where
                break
        out.seen["norm"] = out.where
        out.seen["cosine"] = out.seen.pop("cosine", "")   # the last that was recognised
        made = pieces(records)
        taken = any(enters(made, y, tol, i) for i, _, x in square for y in (x, x.T))
        out.stage = "loss" if out.every and not taken else "logits"
    else:
        out.stage = "norm"
    return out


def harmless_factors(s, ours, t, scales, tol) -> tuple[Found, ...]:
    """A factor of the whole similarity that is 1/tau, of each row that is 1/|t|."""
    spread = s.max(-1) - s.min(-1)
    factor = spread / (ours.max(-1) - ours.min(-1))
    length = np.linalg.norm(t, axis=-1)
    for scale in (1.0, *scales):
        for found, wanted in (((), np.full(len(t), scale)), ((Found("similarity.tokens_normalised"),), scale / length)):
            if near(factor / wanted, np.ones(len(t)), tol):
                return found if scale == 1.0 else (Found("similarity.scaled"), *found)
    return ()
