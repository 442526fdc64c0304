"""The stages of one caption, theirs beside ours: which of the arrays that an implementation makes is which stage?

An array is a stage only if its values are that stage's on two batches: the paper's, or the explanation's where one was found.
A positive factor per row does not count up to eq. 5.  So a mask, an input or a sum of both directions is none.
"""

import math
from typing import Any

import numpy as np

from parity.checker.calling.caller import Caller
from parity.checker.diagnosis import variants
from parity.checker.diagnosis.behaviour import setting_of
from parity.checker.diagnosis.diagnose import Diagnosis
from parity.checker.probes import PROBES, Probe
from sparc_ref import fine_grained_loss

STAGES = (
    ("similarity", "s = t v'", "tokens", "patches"), ("minmax", "eq. 2, s_hat", "tokens", "patches"),
    ("sparse", "eq. 3, s_til", "tokens", "patches"), ("weights", "eq. 4, a", "tokens", "patches"),
    ("grouped", "eq. 5, c", "tokens", "width"), ("logits_vt", "eq. 6, phi(c_j, t_k)/tau", "groups", "tokens"),
    ("loss_vt", "eq. 6, groups pick their token", "", "tokens"), ("loss_tv", "eq. 6, tokens pick their group", "", "tokens"),
)


def side_by_side(ask: Caller, diagnosis: Diagnosis) -> list[dict[str, Any]]:
    """One dict per stage, as check.schema.json has them; [] where there is no fine-grained loss or nothing can be traced."""
    if not {"fine", "total"} & set(ask.convention.losses):
        return []
    probe = PROBES.get(diagnosis.evidence or "padded", PROBES["padded"])
    other = PROBES["padded_again" if probe.name != "padded_again" else "padded"]
    one, two = (seen(ask, p, diagnosis) for p in (probe, other))
    found = []
    ours = reference(probe)
    b = longest(probe)
    n = int(probe.mask[b].sum())
    time = -1
    for name, equation, rows, columns in STAGES:
        mine = real_part(np.atleast_2d(ours[name][b]), name, n)
        both = [key for key, (at, *_) in one[name].items() if key in two[name] and (at >= time or columns != "patches")]
        where, theirs = "", None
        if both:
            best = min(both, key=lambda key: (not one[name][key][2], key[0].endswith("()"), one[name][key][0]))
            time, theirs, _ = one[name][best]
            where = best[0]
        found.append({
            "name": name, "equation": equation, "probe": probe.name, "rows": rows, "columns": columns, "ours": rows_of(mine),
            "theirs": None if theirs is None else rows_of(theirs), "where": where,
            "off": None if theirs is None else off(mine, theirs, name),
        })
    return found


def longest(probe: Probe) -> int:
    return int(np.argmax(probe.mask.sum(1)))


def seen(ask, probe, diagnosis) -> dict[str, dict[tuple[str, int], tuple[int, np.ndarray, bool]]]:
    """Stage -> (where, turn) -> (time, matrix of the longest caption, whether no factor is between), of arrays that are it."""
    b = longest(probe)
    n = int(probe.mask[b].sum())
    known = [reference(probe)]
    if (fine := setting_of(diagnosis)) is not None:
        known.append(variants.evaluate(probe, fine, grad=False).stages)
    turns: dict[str, int] = {}
    records = [(where, turns.update({where: turns.get(where, -1) + 1}) or turns[where], x)
               for where, x in ask(probe, trace=True).stages or []]
    found: dict[str, dict] = {name: {} for name, *_ in STAGES}
    for name, *_ in STAGES:
        for stages in known:
            if name not in stages or np.ndim(stages[name]) < 2 or len(stages[name]) != len(probe.mask):
                continue
            mine = real_part(np.atleast_2d(stages[name][b]), name, n)
            for time, (where, turn, x) in enumerate(records):
                view = view_of(x, mine.shape, probe, b, turn, turns[where] + 1, name)
                between = None if view is None else off(mine, view, name, nan=True)
                if view is not None and between is not None and between < 1e-5:
                    plain = bool(np.allclose(view, mine, rtol=1e-5, atol=1e-6, equal_nan=True))
                    key = (where, turn if turns[where] + 1 < len(probe.mask) else turn - b)
                    found[name].setdefault(key, (time, view, plain))
    return found


def reference(probe: Probe) -> dict[str, np.ndarray]:
    _, trace, _ = fine_grained_loss(probe.v, probe.t, probe.mask, np.asarray(probe.theta))
    return {name: np.asarray(x) for name, x in trace.items()}


def real_part(x, name, n):
    """Rows of real tokens, and their columns where columns are tokens."""
    if name.startswith("loss"):
        return x[:, :n]
    return x[:n, :n] if name.startswith("logits") else x[:n]


def view_of(x, shape, probe, b, turn, turns, name) -> np.ndarray | None:
    """An array as the matrix of caption b, or None where it cannot be that."""
    rows, columns = shape
    batch, tokens = probe.mask.shape
    loss = name.startswith("loss")
    if x.ndim == 4 and x.shape[0] == batch and 1 in x.shape[1:]:
        x = x.squeeze(tuple(i for i in range(1, 4) if x.shape[i] == 1)[:1])
    if loss:
        if x.shape == (batch, tokens):
            return x[b][None, :columns]
        if x.shape == (batch * tokens,):
            return x.reshape(batch, tokens)[b][None, :columns]
        return x[None] if x.shape == (columns,) and turns >= batch and turn % batch == b else None
    if x.ndim == 2 and x.shape[0] == batch * tokens:
        x = x.reshape(batch, tokens, -1)
    if x.ndim == 3 and x.shape[0] == batch:
        wide = tokens if name.startswith("logits") else columns
        if x.shape[1:] == (tokens, wide):
            return x[b, :rows, :columns]
        return x[b].T[:rows, :columns] if x.shape[1:] == (wide, tokens) else None
    if x.ndim == 2 and (turns == batch or batch == 1) and turn == b and x.shape[0] >= rows and x.shape[1] >= columns:
        return x[:rows, :columns] if x.shape[0] in (rows, tokens) and x.shape[1] in (columns, tokens) else None
    return None


def off(mine, other, name, nan=False) -> float | None:
    """Largest difference, of rows of length 1 where a factor per row is harmless, else relative to the largest entry.

    nan: where both are NaN they are alike.  None where theirs is not finite.
    """
    if nan and (np.isnan(mine) == np.isnan(other)).all() and not np.isnan(mine).all():
        mine, other = np.nan_to_num(mine), np.nan_to_num(other)
    if not np.isfinite(other).all():
        return None
    if name in ("logits_vt", "loss_vt", "loss_tv"):
        return float(np.abs(mine - other).max() / max(np.abs(mine).max(), 1e-12))
    lengths = [np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-300) for x in (mine, other)]
    return float(np.abs(mine / lengths[0] - other / lengths[1]).max())


def rows_of(x: np.ndarray) -> list[list[float | None]]:
    return [[float(f"{v:.6g}") if math.isfinite(v) else None for v in row] for row in x]
