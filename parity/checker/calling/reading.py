"""Numbers decide: what kind of temperature, which form of mask, a [CLS] slot, and which output is which loss.

Every test here holds for faulty losses too; see the facts in convention.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from parity.checker.calling import naming
from parity.checker.calling.caller import MASKS, SCALES, SHOWN, Convention, Item, arrays_of
from parity.checker.calling.trial import Unclear, probe_of
from parity.checker.calling.worker import Stopped
from parity.checker.probes import Probe

FINE = {"fine", "local", "token", "tokens", "grounding", "grained", "patch", "word", "words", "sparse", "sparc", "alignment",
        "region"}
WHOLE = {"global", "contrastive", "clip", "itc", "coarse", "g"}
SUM = {"total", "loss", "sum", "all"}


def values(trial, convention: Convention, probe: Probe, paths: list[str]) -> list[float]:
    """Each output as one number; NaN where the call raised."""
    asked = replace(convention, losses={str(i): ((p,), (1.0,)) for i, p in enumerate(paths)})
    try:
        reply, _ = trial.worker.ask(asked.request(grads=False), arrays_of(probe))
    except Stopped:
        return [math.nan] * len(paths)
    said = reply.get("losses", {})
    return [math.nan if said.get(str(i)) is None else float(said[str(i)]) for i in range(len(paths))]


def close(a: float, b: float, dtype: str = "float64") -> bool:
    tolerance = 1e-8 if dtype == "float64" else 2e-4
    return math.isfinite(a) and math.isfinite(b) and abs(a - b) <= tolerance * max(1.0, abs(a), abs(b))


def full(seed: int, batch=3, tokens=6, **more: Any) -> Probe:
    return probe_of(seed, lengths=(tokens,) * batch, tokens=tokens, **more)


def decide_scale(trial, convention, outputs, given) -> tuple[Convention, list[Item]]:
    """At 1/tau = 0 the loss is the same for all embeddings: only the right kind of temperature gets there."""
    argument = next(((n, w) for n, w in convention.arguments if w in SCALES), None)
    name, word = argument or next(iter(convention.attributes.items()), ("", ""))
    if not name:
        why = "--scale fixed" if given.get("scale") == "fixed" else "no argument, parameter or attribute of that kind"
        return convention, [Item("temperature", "hard-coded, if there is any", "likely", why)]
    where = "" if argument else "parameter "
    if given.get("scale") or given.get("attributes") or "call" in given:
        return convention, [Item(f"{where}{name}", SHOWN[word], "given", "--scale, --attributes or --call")]
    kinds = list(dict.fromkeys([word, *naming.scale_kinds(name.split(".")[-1])]))
    passed, used = [], False
    for kind in kinds:
        verdicts = [becomes_uniform(trial, with_kind(convention, name, kind, argument is not None), outputs, size)
                    for size in ((3, 6), (1, 6), (3, 1))]
        used |= any(v is not None for v in verdicts)
        if any(verdicts):
            passed.append(kind)
    if len(passed) == 1:
        item = Item(f"{where}{name}", SHOWN[passed[0]], "certain",
                    "at 1/tau = 0 the loss forgets the embeddings; only this reading gets there")
    elif len(passed) > 1:
        item = Item(f"{where}{name}", SHOWN[passed[0]], "assumed", "it has no effect on the loss")
    else:
        item = Item(f"{where}{name}", SHOWN[kinds[0]], "assumed", "its name; numbers do not tell")
    return with_kind(convention, name, (passed or kinds)[0], argument is not None), [item]


def with_kind(convention, name, kind, argument):
    if argument:
        return replace(convention, arguments=tuple((n, kind if n == name else w) for n, w in convention.arguments))
    return replace(convention, attributes=convention.attributes | {name: kind})


def becomes_uniform(trial, convention, outputs, size) -> bool | None:
    """Whether some output forgets the embeddings at 1/tau = 0.  None where it depends on nothing anyway."""
    batch, tokens = size
    ordinary = [values(trial, convention, full(seed, batch, tokens), outputs) for seed in (1, 2)]
    alive = [i for i in range(len(outputs)) if not close(ordinary[0][i], ordinary[1][i])]
    if not alive:
        return None
    cold = [values(trial, convention, full(seed, batch, tokens, theta=-600.0), outputs) for seed in (1, 2)]
    return any(abs(cold[0][i] - cold[1][i]) < 1e-6 and abs(cold[0][i]) > 1e-6 for i in alive)  # 0 is a saturated one


def decide_mask(trial, convention, outputs, given) -> tuple[Convention, list[Item]]:
    """Which form and which polarity: padding is what may change without changing the loss, or changes it least."""
    name, word = next(((n, w) for n, w in convention.arguments if w in MASKS), ("", ""))
    if not name and convention.word("t") is None:
        return convention, []
    if not name:
        why = "--mask none" if given.get("mask") == "none" else "no argument of that kind"
        return convention, [Item("mask", "takes none: padding looks like tokens", "given" if "mask" in given else "certain",
                                 why)]
    if given.get("mask") or "call" in given:
        return convention, [Item(name, SHOWN[word], "given", "--mask or --call")]
    for batch in (1, 3):                                  # one caption alone has no global loss, which may pool padding
        seen = readings(trial, convention, outputs, name, batch)
        if any(moved_real for *_, moved_real in seen):
            break
    if not seen:
        return convention, [Item(name, SHOWN[word], "likely", "its name")]
    seen = [s for s in seen if counts_tokens(trial, convention, outputs, name, s[1], batch)] or seen
    inert = [s for s in seen if s[2] == 0 and s[3] > 0]
    if inert:
        best = inert[0]
        others = f"; of {len(seen)} readings that differ" if len(seen) > 1 else ""
        item = Item(name, SHOWN[best[1]], "certain", f"read so, padding changes nothing and real tokens do{others}")
    elif len(seen) == 1:
        best = seen[0]
        first, other = (values(trial, convention, probe_of(0, lengths=n), outputs) for n in ((4, 3, 2), (2, 4, 3)))
        item = Item(name, SHOWN[best[1]], "likely", "it has no effect on the loss" if same(first, other) else "its name")
    else:
        ratios = [[ratio_of(s) for s in seen]]
        for seed in (1, 2, 3):                            # names give way only to numbers that agree
            again = {s[1]: ratio_of(s) for s in readings(trial, convention, outputs, name, batch, seed)}
            ratios.append([again.get(s[1], 0.0) for s in seen])
        least = np.min(ratios, axis=0)
        best = seen[int(np.argmax(least))] if least.max() > 3 * max(r[0] for r in ratios) else seen[0]
        item = Item(name, SHOWN[best[1]], "likely", "its name" if best is seen[0] else "read so, padding matters least")
    changed = tuple((n, best[1] if n == name else w) for n, w in convention.arguments)
    return replace(convention, arguments=changed), [item]


def counts_tokens(trial, convention, outputs, name, form, batch) -> bool:
    """Whether a batch without padding has a loss: read the wrong way round, it is padding alone and has none."""
    changed = replace(convention, arguments=tuple((n, form if n == name else w) for n, w in convention.arguments))
    return any(abs(x) > 1e-9 for x in values(trial, changed, full(0, batch), outputs))


def ratio_of(reading) -> float:
    return reading[3] / reading[2] if reading[2] else 0.0


def readings(trial, convention, outputs, name, batch, seed=0) -> list[tuple[list[float], str, float, float]]:
    """Each form of the mask that gives other numbers: (values, form, moved by padding, moved by as many real tokens)."""
    plain, other = full(seed, batch), full(seed + 5, batch)
    mask = np.arange(plain.mask.shape[1]) < np.full((batch, 1), 3)
    seen: list[tuple[list[float], str, float, float]] = []
    for form in naming.mask_forms(name):
        changed = replace(convention, arguments=tuple((n, form if n == name else w) for n, w in convention.arguments))
        first = values(trial, changed, full(seed, batch, mask=mask), outputs)
        if not any(math.isfinite(x) for x in first) or any(same(first, s[0]) for s in seen):
            continue
        swapped = (np.where(where[..., None], other.t, plain.t) for where in (~mask, mask))
        moved = [distance(first, values(trial, changed, full(seed, batch, mask=mask, t=t), outputs)) for t in swapped]
        seen.append((first, form, moved[0], moved[1]))
    return seen


def same(a, b) -> bool:
    return all(close(x, y) or (not math.isfinite(x) and not math.isfinite(y)) for x, y in zip(a, b))


def distance(a, b) -> float:
    """0 where nothing moved beyond rounding; a value that becomes NaN has moved."""
    moved = [0.0 if close(x, y) else abs(x - y) if math.isfinite(x - y) else 1.0 for x, y in zip(a, b) if math.isfinite(x)]
    return max(moved, default=0.0)


def decide_cls(trial, convention, outputs, given) -> tuple[Convention, list[Item]]:
    """Whether slot 0 of the patches is left out of the alignment: then it is a [CLS] token's."""
    name = next((n for n, w in convention.arguments if w == "v"), None)
    if name is None or "patches" in given or "call" in given or convention.word("t") is None:
        return convention, []
    one = full(3, 1)
    loud = one.v.copy()
    loud[:, 0] = 4 * one.t.mean(1)                        # like every token: it would take part
    other = one.v.copy()
    other[:, 1] = 4 * one.t.mean(1)
    first, slot0, slot1 = (values(trial, convention, full(3, 1, v=v), outputs) for v in (one.v, loud, other))
    alive = [i for i in range(len(outputs)) if math.isfinite(first[i]) and not close(first[i], slot1[i])]
    if not alive or not all(close(first[i], slot0[i]) for i in alive):
        return convention, []
    changed = replace(convention, arguments=tuple((n, "v_cls" if n == name else w) for n, w in convention.arguments))
    return changed, [Item(name, SHOWN["v_cls"], "certain", "slot 0 takes no part in the alignment")]


def decide_outputs(trial, convention, outputs, given, about) -> tuple[list[Convention], list[Item]]:
    """Which output is which loss.  A caption alone has no negatives in eq. 1, a token alone none in eq. 6.

    Returns alternatives, likeliest first.
    """
    if given.get("returns"):
        said = written_returns(given["returns"], outputs)
        return [replace(convention, losses=said)], [Item("returns", shown_losses(said), "given", "--returns")]
    table = {
        "plain": [values(trial, convention, full(seed), outputs) for seed in range(4)],
        "alone": [values(trial, convention, full(seed, 1), outputs) for seed in (4, 5)],
        "short": [values(trial, convention, full(seed, 3, 1), outputs) for seed in (6, 7)],
    }
    kinds: dict[str, list[int]] = {"fine": [], "global": [], "mixed": []}
    for i in range(len(outputs)):
        column = {name: [row[i] for row in rows] for name, rows in table.items()}
        if any(all(close(row[i], row[j]) for rows in table.values() for row in rows) for j in range(i)):
            continue                                      # the same number twice
        kinds[kind_of(column, convention)].append(i)
    losses: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {}
    items = []
    for kind in ("fine", "global"):
        found = pick(kinds[kind], table, outputs, kind)
        if found is None:
            names = ", ".join(outputs[i] for i in kinds[kind])
            first = bare(outputs[kinds[kind][0]])
            raise Unclear(f"{about['name']} returns several {kind} losses ({names}): add --returns {first}={kind}")
        if found[0]:
            losses[kind] = found[:2]
            items.append(Item("returns", shown_losses({kind: found[:2]}), "certain", found[2]))
    mixed = kinds["mixed"]
    if "fine" not in losses and (len(mixed) > 1 or losses):  # negatives from the whole batch: no token is alone
        alike = [i for i in mixed if not is_total(trial, convention, outputs, i, table)[0]]
        if (found := pick(alike, table, outputs, "fine")) and found[0]:
            losses["fine"] = found[:2]
            items.append(Item("returns", shown_losses({"fine": found[:2]}), "likely", "one token of one caption gives 0"))
            mixed = [i for i in mixed if i not in alike]
    if not mixed:
        if not losses:
            losses["fine"] = ((outputs[0],), (1.0,))
            items.append(Item("returns", shown_losses(losses), "assumed", "numbers do not tell"))
        return [replace(convention, losses=losses)], items
    main = min(mixed, key=lambda i: (not set(naming.words(outputs[i])) & SUM, i))
    if len(losses) == 2:
        parts = weights_of(table, main, [outputs.index(p) for kind in ("fine", "global") for p in losses[kind][0]])
        words = "the two with other weights on each batch"
        if parts is not None:
            weighted = " + ".join(f"{w:.4g} {k}" for w, k in zip(parts, losses))
            words = weighted if len(parts) == 2 else "a weighted sum of the others"
        sure = "certain" if parts is not None else "likely"
        items.append(Item("returns", f"{bare(outputs[main])}: {words}", sure, "fitted on eight batches"))
        return [replace(convention, losses=losses)], items
    path = ((outputs[main],), (1.0,))
    whole, why = is_total(trial, convention, outputs, main, table)
    if losses:
        items.append(Item("returns", f"{bare(outputs[main])}: a total", "likely", why))
        return [replace(convention, losses=losses | {"total": path})], items
    order = ("total", "fine") if whole else ("fine", "total")
    items.append(Item("returns", shown_losses({order[0]: path}), "certain" if whole else "likely", why))
    return [replace(convention, losses={kind: path}) for kind in order], items


def kind_of(column: dict[str, list[float]], convention) -> str:
    tolerance = 1e-7 if convention.dtype == "float64" else 1e-4

    def zero(name):
        return all(abs(x) < tolerance for x in column[name])

    if not all(math.isfinite(x) for x in column["plain"]) or zero("plain"):
        return "fine"
    if zero("short"):
        return "fine"
    if zero("alone"):
        return "global"
    return "mixed" if all(math.isfinite(x) for name in ("alone", "short") for x in column[name]) else "fine"


def pick(found: list[int], table, outputs, kind):
    """(paths, weights, why) of a loss among outputs of its kind; ((), ...) where there is none, None where it is unclear."""
    zero = "a token alone gives 0" if kind == "fine" else "a caption alone gives 0"
    if not found:
        return (), (), ""
    if len(found) == 1:
        return (outputs[found[0]],), (1.0,), zero
    for i in sorted(found, key=lambda i: (not set(naming.words(outputs[i])) & (SUM | FINE | WHOLE), i)):
        rest = [j for j in found if j != i]
        if (weights := weights_of(table, i, rest)) is not None and all(w >= 0 for w in weights):
            return (outputs[i],), (1.0,), f"{zero}; the others are its parts"
    if len(found) == 2:
        return tuple(outputs[i] for i in found), (0.5, 0.5), f"{zero}; a pair, taken as the two directions and averaged"
    return None


def weights_of(table, of: int, parts: list[int]) -> list[float] | None:
    """Weights that make one output the sum of others on every batch; None where there are none."""
    rows = [row for rows in table.values() for row in rows if all(math.isfinite(row[i]) for i in (of, *parts))]
    if len(rows) <= len(parts) + 1:
        return None
    a, b = np.array([[row[i] for i in parts] for row in rows]), np.array([row[of] for row in rows])
    weights, *_ = np.linalg.lstsq(a, b, rcond=None)
    return weights.tolist() if np.abs(a @ weights - b).max() < 1e-6 * max(1.0, np.abs(b).max()) else None


def is_total(trial, convention, outputs, main, table) -> tuple[bool, str]:
    """Whether an output holds a global loss: with one token per caption it then sees the patches only through their pool."""
    one = full(6, 3, 1)
    first = values(trial, convention, one, [outputs[main]])[0]
    rng = np.random.default_rng(3)
    if not close(0.0, values(trial, convention, full(6, 1, 1), [outputs[main]])[0]):
        return False, "one token of one caption does not give 0"
    other = full(6, 3, 1, v_bar=rng.standard_normal(one.v_bar.shape))
    if convention.word("v_bar") and not close(first, values(trial, convention, other, [outputs[main]])[0]):
        return True, "a token alone leaves a loss of the pooled embeddings"
    noise = rng.standard_normal(one.v.shape)
    changes = {
        "the mean of the patches": one.v + noise - noise.mean(1, keepdims=True),
        "the directions of the patches": one.v * rng.uniform(0.5, 2, (*one.v.shape[:2], 1)),
        "slot 0 of the patches": np.concatenate([one.v[:, :1], one.v[:, 1:] + noise[:, 1:]], 1),
    }
    elsewhere = values(trial, convention, full(6, 3, 1, v=one.v + noise), [outputs[main]])[0]
    if close(first, elsewhere):
        return False, "with one token per caption the patches do not count"
    for what, v in changes.items():
        if close(first, values(trial, convention, full(6, 3, 1, v=v), [outputs[main]])[0]):
            return True, f"a token alone leaves a loss that depends on {what} only: eq. 1"
    return False, "neither a caption alone nor a token alone gives 0"


def written_returns(text: str | dict, outputs: list[str]) -> dict:
    """--returns fine, or PATH=fine,PATH=global with PATH such as loss or 0."""
    pairs = text.items() if isinstance(text, dict) else [p.strip().rpartition("=")[::2] for p in text.split(",")]
    found: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {}
    for path, kind in pairs:
        if kind not in ("fine", "global", "total"):
            raise ValueError(f"--returns {text}: expected fine, global or total, got {kind!r}")
        hits = [p for p in outputs if bare(p) == path] if path else outputs[:1]
        if not hits:
            raise ValueError(f"--returns {text}: no output {path!r}; there are {', '.join(map(bare, outputs))}")
        paths = (*found.get(kind, ((), ()))[0], hits[0])
        found[kind] = (paths, (1 / len(paths),) * len(paths))
    return found


def bare(path: str) -> str:
    """['loss'] -> loss, [0] -> 0, "" -> value"""
    return path.replace("']['", ".").replace("][", ".").strip("[].'") or "the number"


def shown_losses(losses: dict) -> str:
    said = []
    for kind, (paths, _) in losses.items():
        word = {"fine": "eq. 6, fine-grained", "global": "eq. 1, global", "total": "a weighted total of eqs. 1 and 6"}[kind]
        said.append(f"{' and '.join(map(bare, paths))}: {word}")
    return "; ".join(said)
