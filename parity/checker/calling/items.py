"""How sure each part of a convention is, in words that say what was run."""

from dataclasses import replace

from parity.checker.calling import naming
from parity.checker.calling.caller import CLS, LAYOUTS, MASKS, PATCH_MASKS, SCALES, SHOWN, TEXTS, Convention, Item, shown_word
from parity.checker.calling.measuring import amount, distance, full, values
from parity.checker.calling.trial import PLAIN

OF_CONTENT = ("t_cls", "t_zero", "t_nan", "t_flat", "v_flat")  # no layouts of their own


def framework_item(convention, about, given) -> Item:
    imported = about["module"] or about["frameworks"][:1] == [convention.framework]
    sure = "given" if given.get("framework") else "certain" if imported else "likely"
    why = "its code uses it" if convention.framework in about["frameworks"] else "it runs with it"
    dtype = "" if convention.dtype == "float64" else f", {convention.dtype}: it does not take float64"
    return Item("framework", f"{convention.framework}{dtype}", sure, "a torch module" if about["module"] else why)


def argument_items(trial, convention, given) -> list[Item]:
    found = []
    for name, word in convention.arguments:
        if word in MASKS or word in SCALES or word in PATCH_MASKS:
            continue
        role = "v" if word in LAYOUTS else "t" if word in TEXTS else word
        said = naming.hints(name).get(role, 0)
        if "call" in given:
            sure, why = "given", "--call"
        elif name in (given.get("set") or {}):
            sure, why = "given", "--set"
        elif word.startswith("value:"):
            sure, why = "assumed", "the paper leaves it open" if "1e-08" not in word else "a small number"
        elif word.startswith("size:"):
            sure, why = "likely", "its name"
        elif role in ("v", "t"):
            others, ran = other_calls(trial, convention, name, word)
            sure = ("certain" if said >= 1 else "likely" if said else "assumed") if not ran else "likely" if said else "assumed"
            why = "its name" if said else "no name says so"
            tried = f"{others} other layouts and the exchange of both do not run"
            why += f"; {tried}" if not ran else f"; it also runs as {', '.join(ran)}"
        else:
            sure, why = "likely" if said else "assumed", "its name" if said else "no name says so"
        found.append(Item(name, shown_word(word), sure, why))
    if convention.single:
        found.append(Item("batch", "one sample a call; the mean over the batch is taken by the checker", "likely",
                          "it runs with (P,D) and (L,D), and not with a batch"))
    if convention.stubs or "module" in convention.construct.values():
        parts = [f"{name} {'passes on what it gets' if what == 'identity' else f'gives {SHOWN[what]}'}"
                 for name, what in convention.stubs.items()]
        parts += [f"{name} is a stub that passes on what it gets" for name, w in convention.construct.items() if w == "module"]
        found.append(Item("model", f"parts set aside: {', '.join(parts)}", "given" if given.get("isolate") else "likely",
                          "they have weights of their own; the loss is looked at alone"))
    return found


def other_calls(trial, convention: Convention, name: str, word: str) -> tuple[int, list[str]]:
    """How many other layouts of one side were run, and those that gave a number; with them the exchange of both sides.

    A [CLS] slot is a question of its own (`reading`).
    """
    ran = []
    kept = trial.error, trial.call, trial.odd, trial.stops
    words = [w for w in (LAYOUTS if word in LAYOUTS else TEXTS) if w not in (word, *CLS.values(), *OF_CONTENT)]
    changed = [({name: w}, shown_word(w)) for w in words]
    for other, w in convention.arguments:
        if (word in LAYOUTS and w in TEXTS) or (word in TEXTS and w in LAYOUTS):
            changed.append(({name: w, other: word}, f"{shown_word(w)}, exchanged with {other}"))
    for change, shown in changed:
        tried = replace(convention, arguments=tuple((n, change.get(n, w)) for n, w in convention.arguments))
        if trial.run(tried, PLAIN) is not None:
            ran.append(shown)
    trial.error, trial.call, trial.odd, trial.stops = kept
    return len(words), ran


def sigma_item(trial, convention, outputs, about) -> Item | None:
    for p in about["parameters"]:
        if "sigma" in naming.hints(p["name"]):
            passed = dict(convention.arguments).get(p["name"])
            if not passed:
                return Item("sigma", f"argument {p['name']}, left at its default {p['default']}", "likely",
                            "its name; --sigma 1/P passes 1/P")
            other = tuple((n, "value:0.47" if n == p["name"] else w) for n, w in convention.arguments)
            one, two = (values(trial, c, full(2), outputs) for c in (convention, replace(convention, arguments=other)))
            moved = distance(one, two)
            why = f"its name; 0.47 instead moves the loss by {amount(moved)}"
            return Item("sigma", f"argument {p['name']} = {shown_word(passed).replace(' of the probe', '')}", "likely", why)
    held = [a for a in about["attributes"] if "sigma" in naming.hints(a["name"].split(".")[-1]) and a["value"] is not None]
    if held:
        return Item("sigma", f"attribute {held[0]['name']} = {held[0]['value']:.6g}", "likely", "its name")
    return None
