"""Which kind of temperature an argument or a parameter is: 1/tau, tau or the logarithm of either.

At 1/tau = 0 every logit is 0, and the loss is the same for all embeddings: only the right kind gets there.  That holds for
faulty losses too.
"""

import math
from dataclasses import replace

from parity.checker.calling import naming
from parity.checker.calling.caller import SCALES, SHOWN, Convention, Item
from parity.checker.calling.measuring import amount, close, distance, either, full, uneven, values
from parity.checker.calling.trial import Unclear

COLD = -80.0                                              # theta: 1/tau = 2e-35
USUAL = (0.07, 0.01, 0.02, 0.05, 0.1, 0.2)                # temperatures that people start with


def decide_scale(trial, convention, outputs, given) -> tuple[Convention, list[Item]]:
    argument = next(((n, w) for n, w in convention.arguments if w in SCALES), None)
    name, word = argument or next(iter(convention.attributes.items()), ("", ""))
    if not name:
        why = "--scale fixed" if given.get("scale") == "fixed" else "no argument, parameter or attribute of that kind"
        return convention, [Item("temperature", "hard-coded, if there is any", "likely", why)]
    where = "" if argument else "parameter "
    if given.get("scale") or given.get("attributes") or "call" in given:
        return convention, [Item(f"{where}{name}", SHOWN[word], "given", "--scale, --attributes or --call")]
    kinds = list(dict.fromkeys([word, *naming.scale_kinds(name.split(".")[-1])]))
    first = {k: forgets(trial, with_kind(convention, name, k, argument is not None), outputs, FIRST) for k in kinds}
    passed = [k for k in kinds if first[k] <= tolerance(convention)]
    if len(passed) > 1:                                   # exp(exp(x)) gets there too, but not in proportion
        falling = [k for k in passed if falls(trial, with_kind(convention, name, k, argument is not None), outputs)]
        passed = falling if len(falling) == 1 else passed
    kind = (passed or kinds)[0]
    decided = with_kind(convention, name, kind, argument is not None)
    if not matters(trial, decided, outputs):
        sure, why = "assumed", "no effect on the loss: 1/tau of 2.5 and of 5.5 give the same on two batches"
    elif not passed:
        tried = either([SHOWN[k] for k in kinds])
        sure, why = "assumed", f"its name; read as {tried}, the loss still depends on the embeddings at 1/tau = 0"
    elif len(passed) > 1:
        names = " and ".join(SHOWN[k] for k in passed)
        sure, why = "likely", f"its name; read as {names}, the loss forgets the embeddings at 1/tau = 0 alike"
    else:
        again = {k: forgets(trial, with_kind(convention, name, k, argument is not None), outputs, AGAIN) for k in kinds}
        others = [min(first[k], again[k]) for k in kinds if k != kind]
        alike = any(x <= tolerance(convention) for x in others)
        holds = again[kind] <= tolerance(convention) and (not alike or falls(trial, decided, outputs))
        least = min(others)
        sure = "certain" if holds else "likely"
        moved = amount(max(first[kind], again[kind]))
        if not holds:
            why = f"so, the loss forgets the embeddings at 1/tau = 0 on one batch (they move it by {moved}), not on another"
        elif alike:
            why = f"at 1/tau = 0 the embeddings move the loss by {moved}, and only so in proportion to 1/tau on the way there"
        elif math.isfinite(least):
            why = f"at 1/tau = 0 the embeddings move the loss by {moved}; read otherwise by {amount(least)} or more"
        else:
            why = f"at 1/tau = 0 the embeddings move the loss by {moved}; read otherwise it is not finite, or 0"
    return decided, [Item(f"{where}{name}", SHOWN[kind], sure, why)]


def with_kind(convention, name, kind, argument):
    if argument:
        return replace(convention, arguments=tuple((n, kind if n == name else w) for n, w in convention.arguments))
    return replace(convention, attributes=convention.attributes | {name: kind})


def tolerance(convention) -> float:
    return 1e-11 if convention.dtype == "float64" else 1e-6


FIRST = [(lambda seed, theta, n=n, m=m: full(seed, n, m, theta=theta), (1, 2)) for n, m in ((3, 6), (1, 6), (3, 1))]
AGAIN = [
    (lambda seed, theta: uneven(seed, theta=theta), (31, 32)), (lambda seed, theta: uneven(seed, (4,), theta=theta), (31, 32)),
    (lambda seed, theta: full(seed, 4, 1, theta=theta), (31, 32)),
]


def forgets(trial, convention, outputs, batches) -> float:
    """How far other embeddings move the loss at 1/tau = 0, least over the batches; infinite where it is not finite or 0.

    Only outputs count that the embeddings move at an ordinary temperature; 0 is what a saturated loss gives.
    """
    least = math.inf
    for made, seeds in batches:
        ordinary = [values(trial, convention, made(seed, 0.9), outputs) for seed in seeds]
        alive = [i for i in range(len(outputs)) if math.isfinite(ordinary[0][i]) and not close(ordinary[0][i], ordinary[1][i])]
        if not alive:
            continue
        cold = [values(trial, convention, made(seed, COLD), outputs) for seed in seeds]
        moved = [abs(cold[0][i] - cold[1][i]) for i in alive if abs(cold[0][i]) > 1e-6]
        least = min([least, *(x for x in moved if math.isfinite(x))])
    return least


def falls(trial, convention, outputs) -> bool:
    """Whether near 1/tau = 0 the embeddings move some output in proportion to 1/tau, within a factor of 2."""
    moved = []
    for theta in (-4.0, -7.0):
        one, two = (values(trial, convention, full(seed, theta=theta), outputs) for seed in (1, 2))
        moved.append([abs(a - b) for a, b in zip(one, two)])
    return any(a > 1e-9 and b > 1e-9 and 0.5 < a / b / math.exp(3) < 2 for a, b in zip(*moved))


def matters(trial, convention, outputs) -> bool:
    """Whether another temperature gives another loss, on one batch at least."""
    return any(
        distance(values(trial, convention, made(theta=0.9), outputs), values(trial, convention, made(theta=1.7), outputs)) > 0
        for made in (lambda theta: full(1, theta=theta), lambda theta: uneven(31, theta=theta))
    )


def start_notes(convention: Convention, about: dict) -> list[str]:
    """Where a temperature starts (or its default stands) at what another kind of it would start at: exp or log forgotten."""
    starts = {a["name"]: a["value"] for a in about["attributes"]}
    starts |= {p["name"]: p.get("default") for p in about["parameters"]}
    notes = []
    for name, kind in [*convention.arguments, *convention.attributes.items()]:
        x = starts.get(name)
        if kind not in SCALES or isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(x):
            continue
        said = "starts at" if name in convention.attributes else "defaults to"
        for tau in USUAL:
            if kind == "scale" and abs(x - math.log(1 / tau)) < 2e-3:
                notes.append(f"{name}: tau {said} {1 / x:.3g}, which is what log(1/{tau:g}) gives without exp")
            elif kind == "tau" and abs(x - math.log(tau)) < 2e-3:
                notes.append(f"{name}: tau {said} {x:.3g}, which is what log({tau:g}) gives without exp")
            elif kind == "theta" and abs(x - 1 / tau) < 2e-3 / tau:
                notes.append(f"{name}: 1/tau {said} exp({x:.4g}) = {math.exp(x):.2g}: 1/{tau:g} taken without log")
            elif kind == "scale" and abs(x - tau) < 1e-6:
                notes.append(f"{name}: tau {said} {1 / x:.3g}, which is what {tau:g}, a usual tau, gives as 1/tau")
    return notes[:1]


def as_named(convention: Convention, item: Item, about: dict) -> tuple[Convention, Item, list[str]]:
    """Where a name says a logarithm and numbers say that none is undone.      -> convention, item, notes

    A start that is such a logarithm decides: an exp() is missing.  Raises Unclear for an argument, of which nobody knows what
    is passed.
    """
    name = item.what.removeprefix("parameter ")
    word = next((w for n, w in [*convention.arguments, *convention.attributes.items()] if n == name), "")
    if word not in ("scale", "tau") or "log" not in naming.words(name) or item.sure not in ("certain", "likely"):
        return convention, item, []
    kind, argument = {"scale": "theta", "tau": "log_tau"}[word], name in dict(convention.arguments)
    x = {a["name"]: a["value"] for a in about["attributes"]} | {p["name"]: p.get("default") for p in about["parameters"]}
    start, sign = x.get(name), 1 if word == "scale" else -1
    if isinstance(start, int | float) and any(abs(sign * start - math.log(1 / tau)) < 2e-3 for tau in USUAL):
        why = f"its name says so, and its start of {start:.4g}; it acts as {SHOWN[word]} itself"
        note = f"{name}: its name and its start say {SHOWN[kind]}, and it acts as {SHOWN[word]} itself: an exp() is missing"
        return with_kind(convention, name, kind, argument), replace(item, value=SHOWN[kind], sure="likely", why=why), [note]
    if argument and item.sure == "certain":
        raise Unclear(f"{name} acts as {SHOWN[word]} itself, and its name says a logarithm: add --scale {word} if "
                      f"{SHOWN[word]} is passed, --scale {kind} if {SHOWN[kind]} is (then an exp() is missing)")
    return convention, item, [f"{name}: its name says a logarithm, and it acts as {SHOWN[word]} itself: if it holds "
                              f"{SHOWN[kind]}, an exp() is missing"]
