"""The stages of one caption, theirs beside ours: which of the arrays that an implementation makes is which stage?

Arrays are matched by shape and direction of rows, in order: a later stage is never an earlier array.  A positive factor per row
does not count.
"""

import math
from typing import Any

import numpy as np

from parity.checker.calling.caller import Caller
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
    ours = reference(probe)
    records = ask(probe, trace=True).stages or []
    b = int(np.argmax(probe.mask.sum(1)))
    n = int(probe.mask[b].sum())
    theirs = match(records, ours, probe, b)
    found = []
    for name, equation, rows, columns in STAGES:
        mine = real_part(np.atleast_2d(ours[name][b]), name, n)
        where, other = theirs.get(name, ("", None))
        found.append({
            "name": name, "equation": equation, "probe": probe.name, "rows": rows, "columns": columns, "ours": rows_of(mine),
            "theirs": None if other is None else rows_of(other), "where": where,
            "off": None if other is None else off(mine, other, name),
        })
    return found


def reference(probe: Probe) -> dict[str, np.ndarray]:
    _, trace, _ = fine_grained_loss(probe.v, probe.t, probe.mask, np.asarray(probe.theta))
    return {name: np.asarray(x) for name, x in trace.items()}


def real_part(x, name, n):
    """Rows of real tokens, and their columns where columns are tokens."""
    if name.startswith("loss"):
        return x[:, :n]
    return x[:n, :n] if name.startswith("logits") else x[:n]


def match(records, ours, probe, b) -> dict[str, tuple[str, np.ndarray]]:
    """Stage -> (where, (rows, columns) of caption b), by the best sum of likenesses in order."""
    n = int(probe.mask[b].sum())
    turns: dict[str, int] = {}
    candidates = []
    for where, x in records:
        turn = turns[where] = turns.get(where, -1) + 1
        candidates.append((where, x, turn))
    count = {where: last + 1 for where, last in turns.items()}
    wanted = [(name, np.atleast_2d(ours[name][b])) for name, *_ in STAGES]
    wanted = [(name, real_part(mine, name, n)) for name, mine in wanted]
    table = np.zeros((len(wanted), len(candidates)))
    views: dict[tuple[int, int], np.ndarray] = {}
    for i, (name, mine) in enumerate(wanted):
        for j, (where, x, turn) in enumerate(candidates):
            view = view_of(x, mine.shape, probe, b, turn, count[where], name)
            if view is not None and (not name.startswith("loss") or alike(mine, view) > 0.98):  # many rows are alike there
                named = 0.0 if where.endswith("()") else 0.03  # of two that are alike, the one with a name
                same = 0.5 if np.allclose(view, mine, rtol=1e-5, atol=1e-6) else 0.0  # before one that is so but for a factor
                views[i, j], table[i, j] = view, alike(mine, view) + named + same
    best = np.zeros((len(wanted) + 1, len(candidates) + 1))
    for i in range(len(wanted) - 1, -1, -1):
        for j in range(len(candidates) - 1, -1, -1):
            take = table[i, j] + best[i + 1, j + 1] if table[i, j] > 0.3 else 0.0
            best[i, j] = max(best[i + 1, j], best[i, j + 1], take)
    found, j = {}, 0
    for i, (name, _) in enumerate(wanted):
        for k in range(j, len(candidates)):
            if table[i, k] > 0.3 and math.isclose(table[i, k] + best[i + 1, k + 1], best[i, j]):
                found[name], j = (candidates[k][0], views[i, k]), k + 1
                break
    return found


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


def alike(a, b) -> float:
    """Mean cosine of rows, 0 to 1; NaN counts as unlike."""
    with np.errstate(all="ignore"):
        product = (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return float(np.clip(np.where(np.isfinite(product), product, 0), 0, 1).mean())


def off(mine, other, name) -> float | None:
    """Largest difference, of rows of length 1 where a factor per row is harmless, else relative to the largest entry."""
    if not np.isfinite(other).all():
        return None
    if name in ("logits_vt", "loss_vt", "loss_tv"):
        return float(np.abs(mine - other).max() / max(np.abs(mine).max(), 1e-12))
    lengths = [np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-300) for x in (mine, other)]
    return float(np.abs(mine / lengths[0] - other / lengths[1]).max())


def rows_of(x: np.ndarray) -> list[list[float | None]]:
    return [[float(f"{v:.6g}") if math.isfinite(v) else None for v in row] for row in x]
