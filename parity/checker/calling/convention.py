"""From any callable to a calling convention: names give the candidates, numbers decide, and what cannot be decided is asked.

    convention = infer(worker, overrides)        -> Convention; raises Unclear (one keyword would decide) or CannotRun

Facts about numbers that hold for faulty losses too:
- shapes: B, L, P, H, W and D of the first probe differ, so a wrong order or layout does not run;
- at 1/tau = 0 every logit is 0, so the loss no longer depends on the embeddings: that tells 1/tau, tau and their logs apart;
- a caption alone (B = 1) has no negatives in eq. 1, a token alone (L = 1) none in eq. 6: both losses are then 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from parity.checker.calling import naming
from parity.checker.calling.bridges import importable
from parity.checker.calling.caller import LAYOUTS, MASKS, SCALES, SHOWN, Convention, Item, arrays_of, shown_word, spec, told
from parity.checker.calling.worker import Stopped, Worker
from parity.checker.probes import WIDTH, Probe

PATCHES, TOKENS = 10, 6                                   # of the probes here; 2 x 5 for feature maps


class Unclear(ValueError):
    """Two readings remain: the message names the keyword that decides."""


class CannotRun(Exception):
    """No call succeeded.  `error` as the worker gives it: type, message, lines; `call`: how it was called."""

    def __init__(self, error: dict, call: str):
        super().__init__(told(error))
        self.error, self.call = error, call


@dataclass(frozen=True)
class Output:
    """A number that came out, over several probes."""

    path: str
    values: tuple[float, ...]
    graded: bool


def probe_of(seed: int, lengths=(4, 3, 2), tokens=TOKENS, patches=PATCHES, theta=0.9, **changes: np.ndarray) -> Probe:
    """A plain random probe for questions about the convention; half of the tokens are padding."""
    rng = np.random.default_rng([77, seed])
    batch = len(lengths)
    v = rng.standard_normal((batch, patches, WIDTH)) * rng.uniform(0.5, 1.5, (batch, patches, 1))
    t = rng.standard_normal((batch, tokens, WIDTH)) * rng.uniform(0.5, 1.5, (batch, tokens, 1))
    mask = np.arange(tokens) < np.array(lengths)[:, None]
    pooled = rng.standard_normal((2, batch, WIDTH))
    arrays = {"v": v, "t": t, "mask": mask, "v_bar": pooled[0], "t_bar": pooled[1]} | changes
    return Probe(f"convention {seed}", theta=theta, **arrays)


PLAIN = probe_of(0)


class Trial:
    """Calls with conventions that may be wrong; keeps the error that is most worth showing."""

    def __init__(self, worker: Worker):
        self.worker = worker
        self.error: dict | None = None
        self.last: dict = {}
        self.stops = 0
        self.odd = ""                                     # a call that ran and what came out, where that can be no loss
        self.call = ""

    def run(self, convention: Convention, probe: Probe, grads: bool = False) -> dict[str, Any] | None:
        """Output path -> value (NumPy), or None when it raised.  "graded": paths that a gradient flows to."""
        try:
            reply, sent = self.worker.ask(convention.request(grads=grads, outputs=True), arrays_of(probe))
        except Stopped as stop:
            self.keep({"type": stop.kind, "message": str(stop), "lines": [], "stage": "call", "theirs": True}, convention)
            self.stops += 1
            if stop.kind in ("time", "memory", "budget") or self.stops > 1:
                raise CannotRun(self.error or self.last, self.call) from None
            return None
        if "error" in reply:
            self.keep(reply["error"], convention)
            return None
        out = {what["path"]: sent.get(f"out/{i}") for i, what in enumerate(reply["outputs"])} | {"reply": reply}
        if not self.odd and not numeric(out):
            each = reply["outputs"][:4]
            shapes = [f"{what['type']} {tuple(what['shape'])}" if "shape" in what else what["type"] for what in each]
            self.odd = f"{convention} returns {', '.join(shapes) or 'nothing'}"
        return out

    def keep(self, error, convention):
        """The first error is the one of the likeliest call."""
        self.last = error
        if self.error is None:
            self.error, self.call = error, str(convention)


def infer(worker: Worker, told_by_user: dict[str, Any] | None = None) -> list[Convention]:
    """The conventions under which an implementation runs, likeliest first; more than one only where numbers must decide.

    told_by_user: any of call, patches, mask, scale, sigma, returns, attributes, init, framework, method, isolate, dtype; see
    parity.checker.verdict.check.  Raises CannotRun with the likeliest call's error, Unclear, and ValueError for senseless overrides.
    """
    given = {k: x for k, x in (told_by_user or {}).items() if x is not None}
    about = described(worker, {"do": "describe"})
    construct = construction(about, given)
    method = given.get("method")
    if about["kind"] == "class":
        about = described(worker, {
            "do": "describe", "construct": {k: spec(w) for k, w in construct.items()},
            "framework": "torch" if about["module"] else "",
            "shapes": {"v": PLAIN.v.shape, "t": PLAIN.t.shape}, "dtype": "float64", **({"method": method} if method else {}),
        })
    base = Convention(about["name"], "torch", (), construct=construct, method=method, dtype=given.get("dtype") or "float64")
    trial = Trial(worker)
    plain = [p for p in about["parameters"] if p["kind"] not in ("VAR_POSITIONAL", "VAR_KEYWORD")
             and p["name"] not in given.get("set", {})]
    if "call" not in given and (extra := naming.unknown(plain)):
        needs = f"{about['name']} needs {', '.join(extra)}"
        raise Unclear(f"{needs}: add --set {extra[0]}=VALUE, or say all arguments: --call v,t,mask,scale")
    ready: list[Convention] = []
    for convention in candidates(trial, about, base, given):
        found = finish(trial, convention, about, given)
        if verified(found[0]):
            return found
        ready += found
        if len(ready) >= 4:
            break
    if not ready and trial.odd:
        raise Unclear(
            f"{trial.odd}: expected a number, one per caption (B,) or per token (B,L), or a tuple or dict "
            "that holds one"
        )
    if not ready and trial.error is None:
        raise Unclear(no_arguments(about))
    if not ready:
        raise CannotRun(trial.error or {}, trial.call)
    return ready


def verified(convention: Convention) -> bool:
    """Whether numbers alone support the order: padding is inert and the temperature is one.  A wrong order has neither."""
    sure = {item.what.removeprefix("parameter "): item.sure for item in convention.items}
    names = [n for n, w in [*convention.arguments, *convention.attributes.items()] if w in MASKS or w in SCALES]
    return bool(convention.word("mask")) and all(sure.get(n) in ("certain", "given") for n in names)


def described(worker, request):
    try:
        reply, _ = worker.ask(request)
    except Stopped as stop:
        raise CannotRun({"type": stop.kind, "message": str(stop), "lines": []}, "import") from None
    if worker.how == "process" and worker.load_error:
        raise CannotRun(worker.load_error, "import")
    if "error" in reply:
        raise CannotRun(reply["error"], "construct" if "construct" in request else "describe")
    return reply


def construction(about: dict, given: dict) -> dict[str, str]:
    """Words for the constructor's arguments: widths and counts are the probe's, the rest keeps its default."""
    import json

    found = {}
    for name, value in (given.get("init") or {}).items():
        found[name] = f"value:{json.dumps(value)}"
    for p in about["constructor"]:
        if p["name"] in found or p["kind"] in ("VAR_POSITIONAL", "VAR_KEYWORD"):
            continue
        size = naming.size_of(p["name"])
        said = naming.hints(p["name"])
        if size == "D" or (size and "default" not in p):
            found[p["name"]] = f"size:{size}"
        elif "default" not in p and ("sigma" in said):
            found[p["name"]] = "size:1/P"
        elif "default" not in p and "scale" in said:      # any start: the learned temperature is set before each call
            kind = naming.scale_kinds(p["name"])[0]
            start = {"theta": 2.66, "scale": 14.3, "tau": 0.07, "log_tau": -2.66}[kind]
            found[p["name"]] = f"value:{start}"
        elif "default" not in p and "lambda" in said:
            found[p["name"]] = "value:1.0"
        elif "default" not in p:
            raise Unclear(f"{about['name']}: its constructor needs {p['name']!r}: add --init {p['name']}=VALUE")
    return found


def candidates(trial: Trial, about: dict, base: Convention, given: dict) -> Iterator[Convention]:
    """Conventions that run on a first probe, by the score of their names; those far behind the best are left out."""
    for framework in frameworks(about, given):
        best, calls, first = None, trial.worker.asked, None
        for score, convention in assigned(about, replace(base, framework=framework), given):
            first = score if first is None else first
            if score < first - 2.5:                       # names that say something are believed
                break
            if (best is not None and score < best - 0.5) or trial.worker.asked - calls > 2000:
                break
            better = next(runnable(trial, convention, about, given), None)
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
        yield 99.0, replace(base, **written_call(text, [p["name"] for p in params]))
        return
    import json

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


def runnable(trial: Trial, convention: Convention, about: dict, given: dict) -> Iterator[Convention]:
    """The convention with the first patch layout, mask form and form of the temperature under which it runs."""
    names = dict(convention.arguments)
    layouts: list[tuple[str, str] | None] = [None]
    masks: list[tuple[str, str] | None] = [None]
    if "call" not in given:
        if (name := next((n for n, w in names.items() if w in LAYOUTS), None)) and "patches" not in given:
            layouts = [(name, w) for w in layout_order(name, about)]
        if (name := next((n for n, w in names.items() if w in MASKS), None)) and "mask" not in given:
            masks = [(name, w) for w in naming.mask_forms(name)]
    plans = stub_plans(about, convention, given)
    for stubs in plans:
        for layout in layouts:
            for mask in masks:
                for form in ("tensor", "float") if convention.word("scale") else ("tensor",):
                    changed = dict(convention.arguments) | dict(x for x in (layout, mask) if x)
                    trial_of = replace(convention, arguments=tuple(changed.items()), stubs=stubs, theta_form=form)
                    for dtype in dict.fromkeys((convention.dtype, "float32")) if "dtype" not in given else (convention.dtype,):
                        ready = with_temperature(replace(trial_of, dtype=dtype), about, given)
                        out = trial.run(ready, PLAIN)
                        if out is not None and numeric(out):
                            yield ready
                        if out is not None or "dtype" not in str(trial.last.get("message")):
                            break


def layout_order(name, about) -> list[str]:
    said = set(naming.words(name)) | set(naming.words(about.get("doc", "")[:400]))
    maps = ["v_bdhw", "v_bhwd", "v_bdp"]
    if said & {"map", "fmap", "grid", "conv", "spatial"} or "(b,d,h,w)" in about["source"].lower().replace(" ", ""):
        return [*maps, "v", "v_cls"]
    return ["v", "v_cls", *maps]


def numeric(out) -> list[str]:
    """Paths of outputs that could be a loss: numbers, one per caption, or one per token."""
    mask = PLAIN.mask.shape
    fits = [
        path for path, x in out.items()
        if path != "reply" and x is not None and np.asarray(x).dtype.kind == "f"
        and (x.size == 1 or x.shape in (mask, mask[:1]))
    ]
    scalars = [path for path in fits if out[path].size == 1]
    return scalars or fits


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
    parts = [c for c in about["children"] if c["parameters"]]
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


def no_arguments(about) -> str:
    names = ", ".join(p["name"] for p in about["parameters"]) or "none"
    return (
        f"{about['name']}({names}): which arguments are patches and tokens? Say it in calling order, for example "
        "--call v,t,mask,scale; the words are " + ", ".join(SHOWN)
    )


def finish(trial: Trial, convention: Convention, about: dict, given: dict) -> list[Convention]:
    """Decide by numbers what names left open: temperature, mask, [CLS], outputs; and say how sure each is."""
    from parity.checker.calling.reading import decide_cls, decide_mask, decide_outputs, decide_scale

    items = [framework_item(convention, about, given), *argument_items(convention, about, given)]
    outputs = read_outputs(trial, convention, given)
    convention, scale = decide_scale(trial, convention, outputs, given)
    convention, mask = decide_mask(trial, convention, outputs, given)
    if scale[0].sure == "assumed":                        # read the wrong way round, a mask without padding leaves no token
        convention, scale = decide_scale(trial, convention, outputs, given)
    convention, cls = decide_cls(trial, convention, outputs, given)
    ready, returns = decide_outputs(trial, convention, outputs, given, about)
    sigma = sigma_item(convention, about)
    items = [item for item in items if not any(item.what == better.what for better in cls)]
    return [replace(c, items=tuple(x for x in (*items, *cls, *mask, *scale, sigma, *returns) if x)) for c in ready]


def read_outputs(trial, convention, given) -> list[str]:
    """Paths of what may be a loss: it changes with the embeddings, and a gradient flows to it where any does."""
    first, second = trial.run(convention, PLAIN), trial.run(convention, probe_of(1))
    if first is None:
        raise CannotRun(trial.error or {"type": "", "message": "no answer", "lines": []}, trial.call)
    paths = numeric(first)
    moving = [p for p in paths if second is None or not np.array_equal(first[p], second.get(p), equal_nan=False)]
    paths = moving or paths
    if len(paths) > 1 and convention.framework in ("numpy", "cupy"):
        probing = replace(convention, losses={"fine": ((paths[0],), (1.0,))})
        reply, _ = trial.worker.ask(probing.request(), arrays_of(PLAIN))
        if (reply.get("paths") or {}).get("fine"):        # it returns its gradients: numbers behind the first array are theirs
            arrays = [what["path"] for what in reply["outputs"] if len(what.get("shape", [])) > 1]
            order = [what["path"] for what in reply["outputs"]]
            paths = [p for p in paths if not arrays or order.index(p) < order.index(arrays[0])] or paths[:1]
    if len(paths) > 1:
        probing = replace(convention, losses={str(i): ((p,), (1.0,)) for i, p in enumerate(paths)})
        try:
            reply, _ = trial.worker.ask(probing.request(), arrays_of(PLAIN))
        except Stopped:
            return paths
        graded = [p for i, p in enumerate(paths) if reply.get("paths", {}).get(str(i))]
        paths = graded or paths
    return paths


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

