"""How sure each part of a convention is, in words: what names and layouts alone say."""

from parity.checker.calling import naming
from parity.checker.calling.caller import LAYOUTS, MASKS, SCALES, SHOWN, Item, shown_word


def framework_item(convention, about, given) -> Item:
    imported = about["module"] or about["frameworks"][:1] == [convention.framework]
    sure = "given" if given.get("framework") else "certain" if imported else "likely"
    why = "its code uses it" if convention.framework in about["frameworks"] else "it runs with it"
    dtype = "" if convention.dtype == "float64" else f", {convention.dtype}: it does not take float64"
    return Item("framework", f"{convention.framework}{dtype}", sure, "a torch module" if about["module"] else why)


def argument_items(convention, about, given) -> list[Item]:
    found = []
    for name, word in convention.arguments:
        if word in MASKS or word in SCALES:
            continue
        role = "v" if word in LAYOUTS else word
        said = naming.hints(name).get(role, 0)
        if "call" in given:
            sure, why = "given", "--call"
        elif word.startswith("value:"):
            sure, why = "assumed", "the paper leaves it open" if "1e-08" not in word else "a small number"
        elif word.startswith("size:"):
            sure, why = "likely", "its name"
        else:
            sure = "certain" if said >= 1 else "likely" if said else "assumed"
            why = "its name, and other shapes do not run" if said else "other orders do not run or explain less"
        found.append(Item(name, shown_word(word), sure, why))
    if convention.stubs:
        parts = ", ".join(f"{name} {'passes on what it gets' if what == 'identity' else f'gives {SHOWN[what]}'}"
                          for name, what in convention.stubs.items())
        found.append(Item("model", f"parts set aside: {parts}", "given" if given.get("isolate") else "likely",
                          "they have weights of their own; the loss is looked at alone"))
    return found


def sigma_item(convention, about) -> Item | None:
    for p in about["parameters"]:
        if "sigma" in naming.hints(p["name"]):
            passed = dict(convention.arguments).get(p["name"])
            if passed:
                return Item("sigma", f"argument {p['name']} = {shown_word(passed).replace(' of the probe', '')}", "certain",
                            "its name")
            return Item("sigma", f"argument {p['name']}, left at its default {p['default']}", "likely",
                        "its name; --sigma 1/P passes 1/P")
    held = [a for a in about["attributes"] if "sigma" in naming.hints(a["name"].split(".")[-1]) and a["value"] is not None]
    if held:
        return Item("sigma", f"attribute {held[0]['name']} = {held[0]['value']:.6g}", "likely", "its name")
    return None
