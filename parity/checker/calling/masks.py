"""Which form and which polarity a mask has: padding is what may change without changing the loss, or changes it least.

That holds for faulty losses too.  The same for a mask of patches: with no patch left there is nothing to compute.
"""

import math
from dataclasses import replace

import numpy as np

from parity.checker.calling import naming
from parity.checker.calling.caller import MASKS, PATCH_MASKS, SHOWN, Convention, Item
from parity.checker.calling.measuring import amount, close, distance, full, same, uneven, values
from parity.checker.calling.trial import PLAIN, probe_of


def decide_mask(trial, convention, outputs, given, about) -> tuple[Convention, list[Item]]:
    name, word = next(((n, w) for n, w in convention.arguments if w in MASKS), ("", ""))
    if not name and convention.word("t") is None:
        return convention, []
    if convention.word("t") in ("t_list", "t_packed"):
        if not name:
            return convention, [Item("mask", "needs none: captions come without padding", "likely", "no argument of that kind")]
        ran = other_forms(trial, convention, name, word)
        why = f"its name; it also runs with {', '.join(ran)}" if ran else "two other ways of saying it do not run"
        return convention, [Item(name, SHOWN[word], "likely", why)]
    if not name:
        taken = {n for n, _ in convention.arguments}
        left = [p["name"] for p in about["parameters"] if p["name"] not in taken and p.get("default", 0) in (None, "None")]
        if given.get("mask") == "none":
            sure, why = "given", "--mask none"
        elif left:
            sure, why = "assumed", f"no name says mask; left at None: {', '.join(left)}"
        else:
            sure, why = "certain", "no argument of that kind"
        if given.get("mask") != "none" and (word := marked_padding(trial, convention, outputs)):
            t = next(n for n, w in convention.arguments if w == "t")
            said = f"one caption of four tokens gives the same padded to six with {'zeros' if word == 't_zero' else 'NaN'}"
            return with_form(convention, t, word), [Item("mask", "takes none: padding is what holds " + (
                "zeros alone" if word == "t_zero" else "NaN"), "certain", f"{said}, on two batches")]
        return convention, [Item("mask", "takes none: padding looks like tokens", sure, why)]
    if given.get("mask") or "call" in given:
        return convention, [Item(name, SHOWN[word], "given", "--mask or --call")]
    for batch in (1, 3):                                  # one caption alone has no global loss, which may pool padding
        seen = readings(trial, convention, outputs, name, batch)
        if any(moved_real for *_, moved_real in seen):
            break
    if not seen:
        return convention, [Item(name, SHOWN[word], "likely", "its name")]
    every = seen
    seen = [s for s in seen if counts_tokens(trial, convention, outputs, name, s[1], batch)] or seen
    inert = [s for s in seen if s[2] == 0 and s[3] > 0]
    if inert:
        best = inert[0]
        item = inert_item(trial, convention, outputs, name, batch, every, inert)
    elif len(seen) == 1:
        best = seen[0]
        sure, why = "likely", "its name"
        if not matters(trial, with_form(convention, name, best[1]), outputs):
            why = "no effect on the loss: three masks give the same on two batches"
        item = Item(name, SHOWN[best[1]], sure, why)
    else:
        ratios = [[ratio_of(s) for s in seen]]
        for seed in (1, 2, 3):                            # names give way only to numbers that agree
            again = {s[1]: ratio_of(s) for s in readings(trial, convention, outputs, name, batch, seed)}
            ratios.append([again.get(s[1], 0.0) for s in seen])
        least = np.min(ratios, axis=0)
        best = seen[int(np.argmax(least))] if least.max() > 3 * max(r[0] for r in ratios) else seen[0]
        why = "its name; under no reading is padding without effect" if best is seen[0] else (
            f"read so, padding matters least: {1 / least.max():.2g} of what as many real tokens do, on four batches")
        item = Item(name, SHOWN[best[1]], "likely", why)
    return with_form(convention, name, best[1]), [item]


def marked_padding(trial, convention, outputs) -> str:
    """How a loss without a mask knows padding: "t_zero" | "t_nan" | "", by a caption that is padded so and cut."""
    t = next((n for n, w in convention.arguments if w == "t"), None)
    if t is None or convention.single:
        return ""
    for word in ("t_zero", "t_nan"):
        marked, met = with_form(convention, t, word), []
        for seed in (11, 12):
            padded = full(seed, 1, mask=np.arange(6) < np.full((1, 1), 4))
            cut = full(seed, 1, 4, v=padded.v, t=padded.t[:, :4])
            short, long, plain = (values(trial, c, p, outputs) for c, p in (
                (convention, cut), (marked, padded), (convention, padded)))
            met.append(any(close(a, b) and not close(a, c) and abs(a) > 1e-9 for a, b, c in zip(short, long, plain)))
        if all(met):
            return word
    return ""


def other_forms(trial, convention, name, word) -> list[str]:
    """Other words for where packed captions are, under which it gives a number too."""
    kept = trial.error, trial.call, trial.odd, trial.stops
    ran = [SHOWN[w] for w in naming.packed_forms(name) if w != word and trial.run(with_form(convention, name, w), PLAIN)]
    trial.error, trial.call, trial.odd, trial.stops = kept
    return ran


def inert_item(trial, convention, outputs, name, batch, seen, inert) -> Item:
    """How sure a reading is under which padding changes nothing: the others were run too, and all of it again elsewhere."""
    form = inert[0][1]
    shown = SHOWN[form]
    if len(inert) > 1:
        both = " and as ".join(SHOWN[s[1]] for s in inert[:3])
        return Item(name, shown, "likely", f"its name; read as {both}, padding changes nothing alike")
    again = {s[1]: s for s in readings(trial, convention, outputs, name, batch, 40, mask=slice(None))}
    moved = again.get(form)
    if moved is None or moved[2] or not moved[3]:
        return Item(name, shown, "likely", "read so, padding changes nothing on one batch, but not on another")
    why = f"padding moves the loss by 0, as many real tokens by {amount(min(inert[0][3], moved[3]))}"
    alive = [s for s in seen if s[1] != form and (s[2] or s[3])]
    others = [min(s[2], again[s[1]][2]) if s[1] in again else s[2] for s in alive]
    if len(seen) == 1:
        return Item(name, shown, "likely", f"{why}; no other form of a mask runs")
    if not others:
        return Item(name, shown, "certain", f"{why}; read otherwise, no token counts")
    return Item(name, shown, "certain" if min(others) > 0 else "likely",
                f"{why}; read otherwise, padding by {amount(min(others))}")


def matters(trial, convention, outputs) -> bool:
    """Whether another mask gives another loss.  The three have other sums, and other sums of their inverses."""
    lengths = (4, 3, 2), (5, 5, 1), (1, 2, 5)
    for seed in (0, 40):
        one, two, three = (values(trial, convention, probe_of(seed, lengths=n), outputs) for n in lengths)
        if distance(one, two) or distance(one, three):
            return True
    return False


def with_form(convention, name, form):
    return replace(convention, arguments=tuple((n, form if n == name else w) for n, w in convention.arguments))


def counts_tokens(trial, convention, outputs, name, form, batch) -> bool:
    """Whether a batch without padding has a loss: read the wrong way round, it is padding alone and has none."""
    return any(abs(x) > 1e-9 for x in values(trial, with_form(convention, name, form), full(0, batch), outputs))


def ratio_of(reading) -> float:
    return reading[3] / reading[2] if reading[2] else 0.0


def readings(trial, convention, outputs, name, batch, seed=0, mask=None) -> list[tuple[list[float], str, float, float]]:
    """Each form of the mask that gives other numbers: (values, form, moved by padding, moved by as many real tokens).

    Three tokens of six are padding; with `mask` the captions are of different length.
    """
    plain, other = full(seed, batch), full(seed + 5, batch)
    real = np.arange(plain.mask.shape[1]) < np.full((batch, 1), 3)
    if mask is not None:
        real = uneven(seed, (4,) if batch == 1 else (5, 2, 4)).mask
    seen: list[tuple[list[float], str, float, float]] = []
    word = dict(convention.arguments)[name]
    turned = ["mask_lb", "padding_lb", "mask_lb_float"] if MASKS[word].get("turned") else []
    if axes := MASKS[word].get("axes"):
        turned = [w for w in MASKS if MASKS[w].get("axes") == axes or (MASKS[w].get("axes") and axes != "flat")]
    if convention.word("t") == "t_cls":
        forms = naming.mask_forms(name)
        turned = [*forms, *(w for form in forms if (w := f"{form}_cls") in MASKS)]
    for form in turned or naming.mask_forms(name):        # which axis comes first is known: it ran
        changed = with_form(convention, name, form)
        first = values(trial, changed, full(seed, batch, mask=real), outputs)
        if not any(math.isfinite(x) for x in first) or any(same(first, s[0]) for s in seen):
            continue
        swapped = (np.where(where[..., None], other.t, plain.t) for where in (~real, real))
        moved = [distance(first, values(trial, changed, full(seed, batch, mask=real, t=t), outputs)) for t in swapped]
        seen.append((first, form, moved[0], moved[1]))
    return seen


def decide_patch_mask(trial, convention, outputs, given) -> tuple[Convention, list[Item]]:
    """Every patch is valid; which way round that is said, the loss tells: with none valid it does not look at them."""
    name, word = next(((n, w) for n, w in convention.arguments if w in PATCH_MASKS), ("", ""))
    if not name:
        return convention, []
    if "call" in given:
        return convention, [Item(name, SHOWN[word], "given", "--call")]
    if word in ("v_lengths", "v_cu_seqlens", "v_owner"):
        return convention, [Item(name, SHOWN[word], "likely", "its name; patches are flattened")]
    seen = {}
    for form in dict.fromkeys([word, *naming.patch_mask_forms(name)]):
        changed = with_form(convention, name, form)
        one, two = (values(trial, changed, full(7, 3, v=full(seed).v), outputs) for seed in (7, 8))
        seen[form] = distance(one, two) if any(math.isfinite(x) for x in one) else 0.0
    best = word if seen[word] > 0 else max(seen, key=lambda form: seen[form])
    turned = [form for form in seen if PATCH_MASKS[form].get("invert") != PATCH_MASKS[best].get("invert")]
    if seen[best] > 0 and turned and not any(seen[form] for form in turned):
        sure, why = "certain", f"so, other patches move the loss by {amount(seen[best])}; the other way round it ignores them"
    else:
        sure, why = "likely", "its name; numbers do not tell"
    return with_form(convention, name, best), [Item(name, SHOWN[best], sure, why)]
