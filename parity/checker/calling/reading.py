"""A [CLS] slot among the patches: numbers say whether the first slot takes part, its meaning is a reading."""

import math
import re
from dataclasses import replace

from parity.checker.calling.caller import CLS, MASKS, SHOWN, SLOTTED, Convention, Item
from parity.checker.calling.measuring import amount, close, distance, full, uneven, values
from parity.checker.calling.trial import Unclear

SAID = re.compile(r"\bcls|cls\b|_cls|prefix[ _]?tokens?|class[ _-]*(token|embed|slot)", re.I)


def decide_text_slot(trial, convention, outputs, given, about) -> Convention:
    """Whether slot 0 of the tokens is left out of a caption alone: then it holds a pooled embedding, or a [CLS] token.

    Raises Unclear where neither words nor another batch say so: it may as well be a token that is lost.
    """
    name, word = next(((n, w) for n, w in convention.arguments if w in ("t", "t_cls")), ("", ""))
    if not name or "tokens" in given or "call" in given or convention.single:
        return convention
    if word == "t_cls" or not idle(trial, convention, outputs):
        return convention
    mask = next((n for n, w in convention.arguments if w in MASKS), "")
    for form in dict.fromkeys([dict(convention.arguments).get(mask, ""), *(f"{w}_cls" for w in SLOTTED)]):
        arguments = tuple((n, "t_cls" if n == name else form if n == mask else w) for n, w in convention.arguments)
        ready = replace(convention, arguments=arguments)
        if form in ("", *MASKS) and any(math.isfinite(x) for x in values(trial, ready, full(3), outputs)):
            break
    else:
        return convention
    if not SAID.search(f"{name} {about['doc']} {about['source']}") and not slot_is_pooled(trial, ready, outputs, "t_bar"):
        raise Unclear(f"slot 0 of {name} moves the loss of one caption by 0, slot 1 moves it: add --tokens t_cls if it holds a "
                      "[CLS] token or a pooled embedding, --tokens t if it holds a token")
    return ready


def idle(trial, convention, outputs) -> bool:
    """Whether slot 0 of the tokens has no part in the loss of one caption, on two batches, and slot 1 has."""
    slotted = convention.word("t") == "t_cls"
    for one in (full(3, 1), full(33, 1)):
        loud = [one.t.copy() for _ in range(2)]
        for slot, t in enumerate(loud):
            t[:, slot] = 4 * one.v[:, :4].mean(1)
        other = replace(one, t_bar=loud[0][:, 0]) if slotted else replace(one, t=loud[0])
        first, slot0, slot1 = (values(trial, convention, p, outputs) for p in (one, other, replace(one, t=loud[1])))
        alive = [i for i in range(len(outputs)) if math.isfinite(first[i]) and not close(first[i], slot1[i])]
        if not alive or not all(close(first[i], slot0[i]) for i in alive):
            return False
    return True


def slot_is_idle(trial, convention) -> bool:
    return idle(trial, convention, [p for paths, _ in convention.losses.values() for p in paths])


def slot_is_pooled(trial, convention, outputs, leaf) -> bool:
    """Whether slot 0 counts in a batch, where it does not in a sample alone: it holds what eq. 1 compares."""
    moved = []
    for one in (full(5), full(35)):
        changed = one.v_bar[::-1] + 0.5
        other = replace(one, v_bar=changed) if leaf == "v_bar" else replace(one, t_bar=changed)
        moved.append(distance(values(trial, convention, one, outputs), values(trial, convention, other, outputs)))
    return min(moved) > 0


def decide_cls(trial, convention, outputs, given, about) -> tuple[Convention, list[Item]]:
    """Whether slot 0 of the patches is left out of the alignment: then it is taken for a [CLS] token's.

    Raises Unclear where nothing in the code says so: it may as well be a patch that is lost.
    """
    name, word = next(((n, w) for n, w in convention.arguments if w in CLS), ("", ""))
    if not name or "patches" in given or "call" in given or convention.word("t") is None:
        return convention, []
    moved = []
    for one in (full(3, 1), uneven(33, (4,))):
        loud = [one.v.copy() for _ in range(2)]
        for slot, v in enumerate(loud):
            v[:, slot] = 4 * one.t[:, :4].mean(1)         # like every token: it would take part
        first, slot0, slot1 = (values(trial, convention, replace(one, v=v), outputs) for v in (one.v, *loud))
        alive = [i for i in range(len(outputs)) if math.isfinite(first[i]) and not close(first[i], slot1[i])]
        if not alive or not all(close(first[i], slot0[i]) for i in alive):
            return convention, []
        moved.append(max([abs(first[i] - slot1[i]) for i in alive if math.isfinite(slot1[i])], default=1.0))
    changed = replace(convention, arguments=tuple((n, CLS[word] if n == name else w) for n, w in convention.arguments))
    pooled = slot_is_pooled(trial, changed, outputs, "v_bar")
    if not pooled and not SAID.search(f"{name} {about['doc']} {about['source']}"):
        raise Unclear(f"slot 0 of {name} moves the loss by 0 on two batches, slot 1 by {amount(min(moved))}: add --patches "
                      f"{CLS[word]} if it holds a [CLS] token, --patches {word} if it holds a patch")
    why = (f"slot 0 moves the loss of one sample by 0 on two batches, slot 1 by {amount(min(moved))}; --patches {word} "
           "calls it a patch")
    return changed, [Item(name, SHOWN[CLS[word]], "likely", why)]
