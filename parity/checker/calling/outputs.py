"""Which output is which loss.  A caption alone (B = 1) has no negatives in eq. 1, a token alone (L = 1) none in eq. 6.

Each word on how sure that is says what was run; other losses that would give the same zeros are ruled out by numbers, or the
word is "likely".
"""

import math
from dataclasses import replace

import numpy as np

from parity.checker.calling import naming
from parity.checker.calling.caller import CLS, Convention, Item
from parity.checker.calling.measuring import amount, close, distance, full, uneven, values
from parity.checker.calling.trial import Unclear, probe_of

AVERAGED = "two of that kind, taken as the two directions and averaged"
FINE = {"fine", "local", "token", "tokens", "grounding", "grained", "patch", "word", "words", "sparse", "sparc", "alignment",
        "region"}
WHOLE = {"global", "contrastive", "clip", "itc", "coarse", "g"}
SUM = {"total", "loss", "sum", "all"}
KINDS = {"fine": "the fine-grained loss", "global": "the global loss", "total": "a weighted total of both"}


def decide_outputs(trial, convention, outputs, given, about) -> tuple[list[Convention], list[list[Item]]]:
    """Alternatives, likeliest first, and what is said of each."""
    if given.get("returns"):
        said = written_returns(given["returns"], outputs)
        return [replace(convention, losses=said)], [[Item("returns", shown_losses(said), "given", "--returns")]]
    table = measured(trial, convention, outputs)
    kinds: dict[str, list[int]] = {"fine": [], "global": [], "mixed": []}
    told: dict[int, tuple[str, str]] = {}
    for i in range(len(outputs)):
        column = {name: [row[i] for row in rows] for name, rows in table.items()}
        if any(all(close(row[i], row[j]) for rows in table.values() for row in rows) for j in range(i)):
            continue                                      # the same number twice
        kind, sure, why = kind_of(trial, convention, outputs[i], column)
        told[i] = sure, why
        kinds[kind].append(i)
    losses: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {}
    items = []
    for kind in ("fine", "global"):
        found = pick(kinds[kind], table, outputs, told)
        if found is None:
            names = ", ".join(outputs[i] for i in kinds[kind])
            first = bare(outputs[kinds[kind][0]])
            raise Unclear(f"{about['name']} returns several {kind} losses ({names}): add --returns {first}={kind}")
        if found[0]:
            losses[kind] = found[:2]
            items.append(Item("returns", shown_losses({kind: found[:2]}), *found[2:]))
    mixed = kinds["mixed"]
    if "fine" not in losses and (len(mixed) > 1 or losses):  # negatives from the whole batch: no token is alone
        alike = [i for i in mixed if not is_total(trial, convention, outputs[i])[0]]
        alone = ("likely", "one token of one caption gives 0, and it is no total")
        if (found := pick(alike, table, outputs, dict.fromkeys(alike, alone))) and found[0]:
            losses["fine"] = found[:2]
            items.append(Item("returns", shown_losses({"fine": found[:2]}), *alone))
            mixed = [i for i in mixed if i not in alike]
    if not mixed:
        if not losses:
            losses["fine"] = ((outputs[0],), (1.0,))
            items.append(Item("returns", shown_losses(losses), "assumed", "numbers do not tell"))
        return [replace(convention, losses=losses)], [items]
    main = min(mixed, key=lambda i: (not set(naming.words(outputs[i])) & SUM, i))
    if len(losses) == 2:
        items.append(total_of_both(trial, convention, outputs, main, losses, table))
        return [replace(convention, losses=losses)], [items]
    path = ((outputs[main],), (1.0,))
    whole, sure, why = is_total(trial, convention, outputs[main])
    if losses:
        items.append(Item("returns", f"{bare(outputs[main])}: a total", "likely", why))
        return [replace(convention, losses=losses | {"total": path})], [items]
    order = ("total", "fine") if whole else ("fine", "total")
    second = f"read as {KINDS[order[0]]} it is explained less well"
    both = [Item("returns", shown_losses({order[0]: path}), sure, why),
            Item("returns", shown_losses({order[1]: path}), "likely", second)]
    if whole and sure == "certain":                       # pooled embeddings move it: it is no fine-grained loss
        return [replace(convention, losses={"total": path})], [[*items, both[0]]]
    return [replace(convention, losses={kind: path}) for kind in order], [[*items, item] for item in both]


def measured(trial, convention, outputs) -> dict[str, list[list[float]]]:
    """Values of every output: of plain batches, of captions alone, and of tokens alone."""
    return {
        "plain": [values(trial, convention, full(seed), outputs) for seed in range(4)],
        "alone": [values(trial, convention, p, outputs) for p in (full(4, 1), full(5, 1), uneven(34, (5,)))],
        "short": [values(trial, convention, full(seed, batch, 1), outputs) for seed, batch in ((6, 3), (7, 3), (36, 4))],
    }


def kind_of(trial, convention, path, column: dict[str, list[float]]) -> tuple[str, str, str]:
    """-> "fine" | "global" | "mixed", how sure, and why"""
    tolerance = 1e-7 if convention.dtype == "float64" else 1e-4
    top = {name: max(map(abs, column[name])) for name in column}
    least = {name: min(map(abs, column[name])) for name in column}

    def zero(name):
        return all(abs(x) < tolerance for x in column[name])

    if not all(math.isfinite(x) for x in column["plain"]) or zero("plain"):
        return "fine", "assumed", "it is 0 or not finite on ordinary batches, where numbers do not tell"
    if zero("short"):
        why = f"a token alone gives {amount(top['short'])}"
        if zero("alone"):
            return "fine", "likely", f"{why}, but so does a caption alone"
        return "fine", "certain", f"{why}, a caption alone {amount(least['alone'])} or more (three of each)"
    if zero("alone"):
        return pairs_of_captions(trial, convention, path, f"a caption alone gives {amount(top['alone'])}")
    if all(math.isfinite(x) for name in ("alone", "short") for x in column[name]):
        return "mixed", "", ""
    return "fine", "assumed", "a caption or a token alone gives nothing finite, so numbers do not tell"


def pairs_of_captions(trial, convention, path, why) -> tuple[str, str, str]:
    """Eq. 1, or eq. 6 with negatives from other captions: eq. 1 sees pictures and captions through one vector each."""
    what, moved = pooled(trial, convention, path, 6)
    if what:
        again, _ = pooled(trial, convention, path, 4, seed=26)
        said = f"{why}, and the loss sees pictures through {what} alone"
        return "global", "certain" if again == what else "likely", said
    one = full(6)
    t = one.t.copy()
    t[0] = t[0, ::-1]
    turned = distance(values(trial, convention, one, [path]), values(trial, convention, full(6, t=t), [path]))
    if turned > 0:
        said = f"{why}, but the loss depends on single patches and on the order of tokens ({amount(turned)})"
        return "fine", "likely", f"{said}: negatives at the same place"
    return "global", "likely", f"{why}; it is no loss of a mean: patches move it by {amount(moved)} where the mean stays"


def pooled(trial, convention, path, tokens, seed=6) -> tuple[str, float]:
    """Through what alone a loss sees the patches, "" where through none of these.      -> what, least that the others moved it
    """
    one = full(seed, 3, tokens)
    first = values(trial, convention, one, [path])
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(one.v.shape)
    if convention.word("v") is None:
        return "its pooled embeddings", 0.0
    anything = distance(first, values(trial, convention, full(seed, 3, tokens, v=one.v + noise), [path]))
    if not anything:
        other = full(seed, 3, tokens, v_bar=rng.standard_normal(one.v_bar.shape))
        if has_pooled(convention) and distance(first, values(trial, convention, other, [path])):
            return "their pooled embeddings", 0.0
        return "", 0.0
    changes = {
        "the mean of the patches": one.v + noise - noise.mean(1, keepdims=True),
        "the mean of the patches' directions": same_directions(one.v, rng),
        "slot 0 of the patches": np.concatenate([one.v[:, :1], one.v[:, 1:] + noise[:, 1:]], 1),
    }
    moved = {what: distance(first, values(trial, convention, full(seed, 3, tokens, v=v), [path]))
             for what, v in changes.items()}
    return next((what for what in moved if not moved[what]), ""), min(moved.values())


def captions_meet(trial, convention, path) -> float:
    """How far a change of single tokens in one caption depends on one in another: 0 for a total, which pools captions first.

    Tokens 1 and 2 are turned about their middle, lengths kept: the caption's mean stays, that of its directions, and its ends.
    """
    one = full(46)
    t = one.t / np.linalg.norm(one.t, axis=-1, keepdims=True)
    pair = t[:, 1:3]
    turned = same_directions(pair, np.random.default_rng(46))
    other = np.concatenate([t[:, :1], turned / np.linalg.norm(turned, axis=-1, keepdims=True), t[:, 3:]], 1)
    found = {}
    for a in (0, 1):
        for b in (0, 1):
            mixed = t.copy()
            mixed[0], mixed[1] = (other if a else t)[0], (other if b else t)[1]
            found[a, b] = values(trial, convention, full(46, t=mixed), [path])[0]
    return abs(found[0, 0] - found[0, 1] - found[1, 0] + found[1, 1])


def same_directions(v, rng):
    """Other patches of other lengths whose unit vectors have the same sum: pairs of them turned about their middle.

    v (B,P,D), P even.
    """
    u = v / np.linalg.norm(v, axis=-1, keepdims=True)
    middle, half = (u[:, ::2] + u[:, 1::2]) / 2, (u[:, ::2] - u[:, 1::2]) / 2
    axis = middle / np.linalg.norm(middle, axis=-1, keepdims=True)
    other = rng.standard_normal(half.shape)
    other -= (other * axis).sum(-1, keepdims=True) * axis
    other *= np.linalg.norm(half, axis=-1, keepdims=True) / np.linalg.norm(other, axis=-1, keepdims=True)
    turned = np.stack([middle + other, middle - other], 2).reshape(v.shape)
    return turned * rng.uniform(0.5, 2, (*v.shape[:2], 1))


def has_pooled(convention) -> bool:
    """Whether pooled images are passed, by themselves or in slot 0 of the patches."""
    return bool(convention.word("v_bar") or convention.word("v") in CLS.values())


def is_total(trial, convention, path) -> tuple[bool, str, str]:
    """Whether an output holds a global loss: with one token per caption it then sees the patches only through their pool."""
    if not close(0.0, values(trial, convention, full(6, 1, 1), [path])[0]):
        return False, "likely", "one token of one caption does not give 0"
    if has_pooled(convention):
        rng = np.random.default_rng(3)
        moved = []
        for seed, batch in ((6, 3), (26, 4)):
            one = full(seed, batch, 1)
            other = full(seed, batch, 1, v_bar=rng.standard_normal(one.v_bar.shape))
            moved.append(distance(values(trial, convention, one, [path]), values(trial, convention, other, [path])))
        if min(moved) > 0:
            return True, "certain", f"a token alone leaves a loss that pooled embeddings move (by {amount(min(moved))}): eq. 1"
    what, moved_by = pooled(trial, convention, path, 1)
    if what:
        again, _ = pooled(trial, convention, path, 1, seed=26)
        met = captions_meet(trial, convention, path)
        if met > (1e-9 if convention.dtype == "float64" else 1e-4):
            return False, "likely", f"single tokens of two captions meet in it ({amount(met)}), as in no total: batch negatives"
        if again == what:
            return True, "likely", f"a token alone leaves a loss that sees pictures through {what} alone, on two batches: eq. 1"
    if not moved_by:
        return False, "likely", "with one token per caption the patches do not count"
    why = f"a token alone leaves a loss of single patches: they move it by {amount(moved_by)} where the mean stays"
    return False, "likely", why


def total_of_both(trial, convention, outputs, main, losses, table) -> Item:
    """Weights of a total of both losses that are there too, fitted on ten batches and tried on three others."""
    parts = [outputs.index(p) for kind in ("fine", "global") for p in losses[kind][0]]
    weights = weights_of(table, main, parts)
    if weights is None:
        return Item("returns", f"{bare(outputs[main])}: no total of the two with the same weights on each batch", "likely",
                    "a fit on ten batches fails")
    off = 0.0
    for probe in (uneven(50), uneven(51, (1, 6, 3, 2)), probe_of(52, patches=8)):
        row = values(trial, convention, probe, outputs)
        off = max(off, abs(sum(w * row[i] for w, i in zip(weights, parts)) - row[main]))
    words = " + ".join(f"{w:.4g} {k}" for w, k in zip(weights, losses)) if len(parts) == 2 else "a weighted sum of the others"
    holds = off < 1e-6
    why = f"fitted on ten batches; on three others, of unequal lengths, it is off by {amount(off)}"
    return Item("returns", f"{bare(outputs[main])}: {words}", "certain" if holds else "assumed", why)


def pick(found: list[int], table, outputs, told):
    """(paths, weights, sure, why) of a loss among outputs of its kind; ((), ...): there is none; None: it is unclear."""
    if not found:
        return (), (), "", ""
    if len(found) == 1:
        return (outputs[found[0]],), (1.0,), *told[found[0]]
    for i in sorted(found, key=lambda i: (not set(naming.words(outputs[i])) & (SUM | FINE | WHOLE), i)):
        rest = [j for j in found if j != i]
        if (weights := weights_of(table, i, rest)) is not None and all(w >= 0 for w in weights):
            return (outputs[i],), (1.0,), told[i][0], f"{told[i][1]}; the others are its parts, on ten batches"
    if len(found) == 2:
        return tuple(outputs[i] for i in found), (0.5, 0.5), "likely", AVERAGED
    return None


def weights_of(table, of: int, parts: list[int]) -> list[float] | None:
    """Weights that make one output the sum of others on every batch; None where there are none."""
    rows = [row for rows in table.values() for row in rows if all(math.isfinite(row[i]) for i in (of, *parts))]
    if len(rows) <= len(parts) + 1:
        return None
    a, b = np.array([[row[i] for i in parts] for row in rows]), np.array([row[of] for row in rows])
    weights, *_ = np.linalg.lstsq(a, b, rcond=None)
    return weights.tolist() if np.abs(a @ weights - b).max() < 1e-6 * max(1.0, np.abs(b).max()) else None


def written_returns(text: str | dict, outputs: list[str]) -> dict:
    """--returns fine, or PATH=fine,PATH=global with PATH such as loss or 0."""
    pairs = text.items() if isinstance(text, dict) else [p.strip().rpartition("=")[::2] for p in text.split(",")]
    found: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {}
    for path, kind in pairs:
        if kind not in KINDS:
            raise ValueError(f"--returns {text}: expected fine, global or total, got {kind!r}")
        hits = [p for p in outputs if bare(p) == path] if path else outputs[:1]
        if not hits:
            raise ValueError(f"--returns {text}: no output {path!r}; there are {', '.join(map(bare, outputs))}")
        paths = (*found.get(kind, ((), ()))[0], hits[0])
        found[kind] = (paths, (1 / len(paths),) * len(paths))
    return found


def bare(path: str) -> str:
    """['loss'] -> loss, [0] -> 0, "" -> value"""
    parts = [part.replace("']['", ".").replace("][", ".").strip("[].'") or "the number" for part in path.split(" / ")]
    return " / ".join(parts)


def shown_losses(losses: dict) -> str:
    return "; ".join(f"{' and '.join(map(bare, paths))}: {KINDS[kind]}" for kind, (paths, _) in losses.items())
