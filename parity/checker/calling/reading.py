"""A [CLS] slot among the patches: numbers say whether the first slot takes part, its meaning is a reading."""

import math
import re
from dataclasses import replace

from parity.checker.calling.caller import CLS, SHOWN, Convention, Item
from parity.checker.calling.measuring import amount, close, full, uneven, values
from parity.checker.calling.trial import Unclear

SAID = re.compile(r"\bcls|cls\b|_cls|class[ _-]*(token|embed|slot)", re.I)


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
    if not SAID.search(f"{name} {about['doc']} {about['source']}"):
        raise Unclear(f"slot 0 of {name} moves the loss by 0 on two batches, slot 1 by {amount(min(moved))}: add --patches "
                      f"{CLS[word]} if it holds a [CLS] token, --patches {word} if it holds a patch")
    changed = replace(convention, arguments=tuple((n, CLS[word] if n == name else w) for n, w in convention.arguments))
    why = f"slot 0 moves the loss by 0 on two batches, slot 1 by {amount(min(moved))}; --patches {word} calls it a patch"
    return changed, [Item(name, SHOWN[CLS[word]], "likely", why)]
