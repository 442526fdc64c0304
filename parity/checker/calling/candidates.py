"""Conventions by the names of arguments alone, likeliest first, and the first layout, mask and temperature that runs."""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import replace

from parity.checker.calling import naming
from parity.checker.calling.bridges import importable
from parity.checker.calling.caller import LAYOUTS, MASKS, PATCH_MASKS, SCALES, TEXTS, Convention, spec
from parity.checker.calling.taken import is_each
from parity.checker.calling.trial import PLAIN, CannotRun, Trial, numeric

ODD = (                                                   # layouts of patches and tokens that are tried where no usual one runs
    ("v_bdp", "t_bdl"), ("v_pbd", "t_lbd"), ("v", "t_bdl"), ("v_bdhw", "t_bdl"), ("v_bhwd", "t_bdl"), ("v_pbd", "t"),
    ("v", "t_lbd"), ("v_cls", "t_bdl"), ("v_bdp", "t_lbd"), ("v_pbd", "t_bdl"), ("v_bdhw", "t_lbd"), ("v_bhwd", "t_lbd"),
    ("v_cls", "t_cls"), ("v", "t_cls"),
)
WAYS = ("usual", "single", "odd", "wide", "packed", "flat", "lists")  # the later where none of the earlier runs
PAIRS = {"odd": ODD, "packed": (("v", "t_packed"),), "flat": (("v_flat", "t_flat"), ("v_flat", "t_packed")),
         "lists": (("v_list", "t_list"), ("v", "t_list")), "single": (("v", "t"),)}


def ways(about: dict) -> tuple[str, ...]:
    """WAYS, with packed captions first where a name says where they begin."""
    packed = any(naming.is_packing(p["name"]) and not is_number(p) for p in about["parameters"])  # batch_idx=0 packs nothing
    early = ("packed", "flat") if packed else ()
    if any(naming.size_of(p["name"]) == "B" and "default" not in p for p in about["parameters"]):
        early = ("flat", *early[:1])                      # whoever needs the size of the batch cannot see it
    return (*early, *(w for w in WAYS if w not in early))


def candidates(trial: Trial, about: dict, base: Convention, given: dict, way: str = "usual") -> Iterator[Convention]:
    """Conventions that run on a first probe, by the score of their names; those far behind the best are left out.

    way: "usual" | "single", one sample a call | "odd", with the layouts of ODD alone | "wide", masks (B,1,L) | "packed"
    captions | "flat", with patches too | "lists" of them
    """
    asked = False
    for framework in frameworks(about, given):
        best, calls, first = None, trial.worker.asked, None
        for score, convention in assigned(about, replace(base, framework=framework), given):
            first = score if first is None else first
            if score < first - 2.5:                       # names that say something are believed
                break
            if (best is not None and score < best - 0.5) or trial.worker.asked - calls > 2000:
                break
            if trial.no_loss and best is None and way == "usual" and score < first:
                return
            if not asked and best is None and trial.tried > 200 and len(trial.kinds) == 1:
                asked = True
                if raises_always(trial, about, replace(base, framework=framework), given):
                    tried = f"{trial.tried} ways of calling it were tried, of every layout; each raises this"
                    raise CannotRun(trial.error or {}, trial.call, (*trial.notes[:1], tried))
            better = next(runnable(trial, convention, about, given, way), None)
            if better is not None and (framework in about["frameworks"] or differentiable(trial, better)):
                best = score if best is None else best
                yield better
        if best is not None:
            return


def differentiable(trial, convention) -> bool:
    """Whether a framework that was only guessed gets through the backward pass too."""
    out = trial.run(convention, PLAIN)
    probing = replace(convention, losses={"fine": ((numeric(out)[0],), (1.0,))}) if out else convention
    return trial.run(probing, PLAIN, grads=True) is not None


def frameworks(about, given):
    if name := given.get("framework"):
        if not importable(name):
            raise ValueError(f"framework {name} is not installed here")
        return [name]
    names = [name for name in about["frameworks"] if name in ("torch", "jax", "numpy", "tensorflow", "cupy")
             and importable(name)]
    rest = [name for name in ("torch", "numpy", "jax") if name not in names and importable(name)]
    if about["module"]:
        return ["torch"]
    return names or rest


def assigned(about: dict, base: Convention, given: dict) -> Iterator[tuple[float, Convention]]:
    """Conventions by the names alone, likeliest first, masks and layouts still the first of their kind."""
    params = [p for p in about["parameters"] if p["kind"] not in ("VAR_POSITIONAL", "VAR_KEYWORD")]
    keyword_only = frozenset(p["name"] for p in params if p["kind"] == "KEYWORD_ONLY")
    if text := given.get("call"):
        written = written_call(text, [p["name"] for p in params])
        given_names = {name for name, _ in written["arguments"]}
        if short := [p["name"] for p in params if "default" not in p and p["name"] not in given_names]:
            needs = f"{about['name']} also needs {', '.join(short)}"
            raise ValueError(f"--call {text}: {needs}: a word for each, value:0.5 for example")
        yield 99.0, replace(base, **written)
        return
    fixed = given.get("set") or {}
    free = [p for p in params if p["name"] not in fixed]
    for score, roles in naming.assignments(free):
        arguments, keywords, skipped = [], set(keyword_only), False
        for p in params:
            name = p["name"]
            word = f"value:{json.dumps(fixed[name])}" if name in fixed else word_for(name, p, roles, given)
            if word is None:                              # keeps its default; what follows goes by keyword
                skipped = True
                continue
            if skipped:
                keywords.add(name)
            arguments.append((name, word))
        if any(p["kind"] == "POSITIONAL_ONLY" and p["name"] in keywords for p in params):
            continue
        yield score, replace(base, arguments=tuple(arguments), keywords=frozenset(keywords & {n for n, _ in arguments}))


def word_for(name: str, p: dict, roles: dict[str, str], given: dict) -> str | None:
    """The first word to try for an argument; None: it keeps its default."""
    if name not in roles:
        asked = (given.get("sigma") or "default") != "default" and "default" in p and "sigma" in naming.hints(name)
        return sigma_word(given["sigma"]) if asked else None
    match roles[name]:
        case "v":
            return given.get("patches") or "v"
        case "v_mask":
            return naming.patch_mask_forms(name)[0]
        case "t":
            return given.get("tokens") or "t"
        case "mask":
            word = given.get("mask") or naming.mask_forms(name)[0]
            return None if word == "none" else word
        case "scale":
            kind = given.get("scale") or naming.scale_kinds(name)[0]
            return None if kind == "fixed" else kind
        case "sigma":
            return sigma_word(given.get("sigma") or "1/P")
        case "lambda":
            return "value:1.0"
        case "eps":
            return "value:1e-08"
        case "run":
            return f"value:{json.dumps(naming.RUN[name])}"
        case "size":
            return f"size:{naming.size_of(name) or 'P'}"
    return roles[name]


def sigma_word(value) -> str:
    return "size:1/P" if value == "1/P" else f"value:{float(value)}"


def written_call(text: str, names: list[str]) -> dict:
    """--call v,t,mask_float,scale=tau: words in calling order, name=word where it goes by keyword."""
    arguments, keywords = [], set()
    for i, part in enumerate(filter(None, (p.strip() for p in text.split(",")))):
        name, equals, word = part.partition("=")
        if not equals:
            name, word = (names[i] if i < len(names) else f"argument {i + 1}"), part
        else:
            keywords.add(name.strip())
        word = word.strip()
        try:
            spec(word)
        except ValueError as error:
            raise ValueError(f"--call {text}: {error}") from None
        arguments.append((name.strip(), word))
    return {"arguments": tuple(arguments), "keywords": frozenset(keywords)}


def runnable(trial: Trial, convention: Convention, about: dict, given: dict, way: str = "usual") -> Iterator[Convention]:
    """The convention with the first layouts, mask forms and form of the temperature under which it runs."""
    for trial_of in forms(convention, about, given, way):
        for dtype in dict.fromkeys((convention.dtype, "float32")) if "dtype" not in given else (convention.dtype,):
            ready = with_temperature(replace(trial_of, dtype=dtype), about, given)
            out = trial.run(ready, PLAIN)
            if out is not None and numeric(out):
                yield ready
            elif trial.no_loss and way == "usual":
                return                                    # it runs and is no loss: no other form of a mask makes it one
            if out is not None or "dtype" not in str(trial.last.get("message")):
                break


def forms(convention: Convention, about: dict, given: dict, way: str = "usual") -> Iterator[Convention]:
    """The convention in all layouts, mask forms and forms of the temperature that are tried, likeliest first."""
    names = dict(convention.arguments)
    layouts: list[dict[str, str]] = [{}]
    masks: list[dict[str, str]] = [{}]
    roles: tuple = (LAYOUTS, TEXTS, MASKS, PATCH_MASKS)
    v, t, mask, patch_mask = (next((n for n, w in names.items() if w in words), "") for words in roles)
    if way in ("lists", "single") and convention.framework == "jax":  # compiled for arrays alone
        return
    each = bool(t) and is_each(t)
    if way == "single":
        if not (v and t) or each or "call" in given:
            return
        convention = replace(convention, single=True)
    if "call" not in given:
        if way != "usual" and way in PAIRS:
            layouts = [{v: one, t: two} for one, two in PAIRS[way] if v and t and given.get("patches", one) == one
                       and given.get("tokens", two) == two]
            if not mask and way == "single":              # no mask: its captions have no padding
                layouts = [{v: "v", t: "t_list"}]
        elif each and not mask and "tokens" not in given:
            layouts = [{v: "v", t: "t_list"}]
        elif v and "patches" not in given:
            layouts = [{v: w} for w in layout_order(v, about)]
        if mask and "mask" not in given:
            masks = [{mask: w} for w in [*last_axis_of_one(mask, about, way), *forms_of_mask(mask, way)]]
        elif way in ("wide", "packed", "flat"):
            return
        if patch_mask:
            forms = naming.patch_mask_forms(patch_mask)[:3] if way != "flat" else ["v_lengths", "v_cu_seqlens", "v_owner"]
            masks = [{**m, patch_mask: w} for m in masks for w in forms]
    plans = stub_plans(about, convention, given)
    for stubs in plans:
        for layout in layouts:
            for shape in masks:
                for form in ("tensor", "float") if convention.word("scale") else ("tensor",):
                    changed = names | layout | shape
                    yield replace(convention, arguments=tuple(changed.items()), stubs=stubs, theta_form=form)


def raises_always(trial: Trial, about: dict, base: Convention, given: dict) -> bool:
    """Whether calls that differ in everything, sixty of all that there are, raise what every call so far has raised."""
    likeliest = [convention for _, convention in itertools.islice(assigned(about, base, given), 8)]
    every = [form for way in ways(about) for convention in likeliest for form in forms(convention, about, given, way)]
    for convention in every[::max(1, len(every) // 60)]:
        if trial.run(with_temperature(convention, about, given), PLAIN) is not None or len(trial.kinds) > 1:
            return False
    return True


def is_number(p: dict) -> bool:
    """Whether a parameter's default is a number: no array is expected there."""
    return bool(re.fullmatch(r"-?\d+(\.\d*)?", str(p.get("default", ""))))


def last_axis_of_one(name: str, about: dict, way: str) -> list[str]:
    """(B,L,1) before (B,L) where the code takes the last axis of a mask away, which would be the tokens' in (B,1)."""
    taken = rf"\b{re.escape(naming.last_of(name))}(\.squeeze\((dim=)?(-1|2)\)|\[\.\.\., 0\]|\[:, :, 0\])"
    if way != "usual" or not re.search(taken, str(about.get("source", ""))):
        return []
    return [w for form in dict.fromkeys(naming.mask_forms(name)) if (w := f"{form}_bl1") in MASKS]


def forms_of_mask(name: str, way: str) -> list[str]:
    forms = naming.mask_forms(name)
    if way == "packed":
        return naming.packed_forms(name)
    if way == "flat":
        return [*(w for form in forms if (w := f"{form}_flat") in MASKS), *naming.packed_forms(name)]
    if way == "wide":
        forms = ["additive", *forms] if {"extended", "bias", "additive"} & set(naming.words(name)) else forms
        pairs = ["mask_bll", "mask_bll_float"]
        wide = [w for axes in ("b11l", "b1l", "bl1") for form in dict.fromkeys(forms) if (w := f"{form}_{axes}") in MASKS]
        return [*pairs, *wide] if "pair" in naming.words(name) else [*wide, *pairs]
    turned = ["padding_lb", "mask_lb"] if forms[0] == "padding" else ["mask_lb", "mask_lb_float", "padding_lb"]
    return [*forms, *(turned if way == "odd" else ())]


def layout_order(name, about) -> list[str]:
    said = set(naming.words(name)) | set(naming.words(about.get("doc", "")[:400]))
    maps = ["v_bdhw", "v_bhwd", "v_bdp"]
    if said & {"map", "fmap", "grid", "conv", "spatial"} or "(b,d,h,w)" in about["source"].lower().replace(" ", ""):
        return [*maps, "v", "v_cls"]
    return ["v", "v_cls", *maps]


def with_temperature(convention: Convention, about: dict, given: dict) -> Convention:
    """Find a temperature that the instance holds: a learned parameter, or a number of that name."""
    if convention.word("scale") in SCALES or given.get("scale") == "fixed":
        return convention
    named = given.get("attributes")
    if named:
        return replace(convention, attributes=dict(named))
    found = [a for a in about["attributes"] if a["value"] is not None and "scale" in naming.hints(a["name"].split(".")[-1])]
    kinds = ("parameter", "array", "number", "buffer")
    found.sort(key=lambda a: kinds.index(a["kind"]))
    learned = [a for a in about["attributes"] if a["kind"] == "parameter" and a["value"] is not None]
    if not found and len(learned) == 1 and not set(naming.words(learned[0]["name"])) & {"bias", "b", "lambda", "weight"}:
        found = learned                                   # the one number that it learns
    if not found:
        return convention
    attribute = found[0]
    order = naming.scale_kinds(attribute["name"].split(".")[-1])
    return replace(convention, attributes={attribute["name"]: given.get("scale") or near(order, attribute["value"])})


def near(order: list[str], value: float) -> str:
    """The kind of temperature that fits its initial value: tau is about 0.07, log(1/tau) about 2.66, 1/tau about 14."""
    fits = {"tau": 0 < value <= 1, "theta": 1 < value <= 5, "scale": value > 5, "log_tau": value < 0}
    return next((kind for kind in order if fits[kind]), order[0])


def stub_plans(about: dict, convention: Convention, given: dict) -> list[dict[str, str]]:
    """Which parts of a model step aside: towers hand over embeddings, adapters pass them on."""
    if given.get("isolate"):
        return [dict(given["isolate"])]
    parts = [c for c in about["children"] if c["parameters"] > 1]  # one number is a temperature
    if not parts:
        return [{}]
    adapters, towers = {}, {}
    for c in parts:
        said = naming.hints(c["name"])
        side = "v" if said.get("v", 0) > said.get("t", 0) else "t" if said.get("t") else None
        named = set(naming.words(c["name"]))
        adapters[c["name"]] = "identity"
        is_adapter = named & {"proj", "projection", "adapter", "head", "fc", "linear", "norm",
                              "ln"} or c["type"] in ("Linear", "LayerNorm")
        towers[c["name"]] = "identity" if is_adapter or side is None else side
    return [plan for i, plan in enumerate((adapters, towers)) if i == 0 or plan != adapters]
