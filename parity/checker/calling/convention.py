"""From any callable to a calling convention: names give the candidates, numbers decide, and what cannot be decided is asked.

    convention = infer(worker, overrides)        -> Convention; raises Unclear (one keyword would decide) or CannotRun

Facts about numbers that hold for faulty losses too:
- shapes: B, L, P, H, W and D of the first probe differ, so a wrong order or layout does not run;
- at 1/tau = 0 every logit is 0, so the loss no longer depends on the embeddings: that tells 1/tau, tau and their logs apart;
- a caption alone (B = 1) has no negatives in eq. 1, a token alone (L = 1) none in eq. 6: both losses are then 0.
"""

import re
from dataclasses import replace
from typing import Any

import numpy as np

from parity.checker.calling import naming
from parity.checker.calling.caller import MASKS, SCALES, Convention, check_words, spec, told, words
from parity.checker.calling.candidates import candidates, runnable, ways
from parity.checker.calling.items import argument_items, framework_item, sigma_item
from parity.checker.calling.masks import decide_mask, decide_patch_mask
from parity.checker.calling.measuring import close, uneven, values
from parity.checker.calling.outputs import bare, decide_outputs
from parity.checker.calling.reading import decide_cls, decide_text_slot, slot_is_idle
from parity.checker.calling.temperature import as_named, decide_scale, start_notes
from parity.checker.calling.trial import PLAIN, SQUARE, CannotRun, Trial, Unclear, numeric, probe_of
from parity.checker.calling.worker import Stopped, Worker

LATE = ("single", "wide", "packed", "flat", "lists")       # tried where no other way runs


def infer(worker: Worker, told_by_user: dict[str, Any] | None = None) -> list[Convention]:
    """The conventions under which an implementation runs, likeliest first; more than one only where numbers must decide.

    told_by_user: any of verdict.OVERRIDES, as parity.check takes them.  Raises CannotRun with the likeliest call's error,
    Unclear, and ValueError for what makes no sense.
    """
    given, trial = {k: x for k, x in (told_by_user or {}).items() if x is not None}, Trial(worker)
    check_words(given)
    try:
        return inferred(trial, given)
    except (Unclear, CannotRun) as first:
        if not trial.reshaped:
            raise
        try:
            return inferred(Trial(worker, patches=SQUARE), given)
        except (Unclear, CannotRun):
            raise first from None


def inferred(trial: Trial, given: dict[str, Any]) -> list[Convention]:
    """infer, with batches of one number of patches."""
    worker = trial.worker
    about = described(worker, {"do": "describe"})
    construct = construction(about, given)
    method = given.get("method")
    if about["kind"] == "class":
        about = described(worker, {
            "do": "describe", "construct": {k: spec(w) for k, w in construct.items()},
            "framework": "torch" if about["module"] else "",
            "shapes": {name: trial.arrays(PLAIN)[name].shape for name in ("v", "t")}, "dtype": "float64",
            **({"method": method} if method else {}),
        })
    base = Convention(about["name"], "torch", (), construct=construct, method=method, dtype=given.get("dtype") or "float64")
    plain = [p for p in about["parameters"] if p["kind"] not in ("VAR_POSITIONAL", "VAR_KEYWORD")
             and p["name"] not in given.get("set", {})]
    if "call" not in given and (extra := naming.unknown(plain)):
        needs = f"{about['name']} needs {', '.join(extra)}"
        call = offered([p["name"] for p in plain if "default" not in p])
        raise Unclear(f"{needs}: add --set {extra[0]}=VALUE, or say all arguments in calling order, as in --call {call}")
    ready: list[Convention] = []
    for way in ways(about):
        if not ready and trial.no_loss and way != "usual":
            break
        pooled = bool(ready) and all(c.word("v") is None for c in ready)  # (N,D) and (N,D): one sample's, maybe
        if ready and way in LATE and not (way == "single" and pooled):
            continue
        for convention in candidates(trial, about, base, given, way):
            found = finish(trial, convention, about, given)
            if convention.word("t") == "t_cls" and not slot_is_idle(trial, found[0]):
                continue                                  # it runs so, as it would with any number of tokens
            if verified(found[0]) or way in ("packed", "lists") or (way in ("flat", "single") and supported(found[0])):
                return found
            if way in ("usual", "wide"):
                ready += found
            elif supported(found[0]):
                return found
            if len(ready) >= 4:
                break
        pooled = all(c.word("v") is None for c in ready)
        if "call" in given or (any(supported(c) for c in ready) and not (way == "usual" and pooled)):
            break
    if not ready and trial.odd:
        raise Unclear(
            f"{trial.odd}: expected a number, one per caption (B,) or per token (B,L), or a tuple or dict "
            "that holds one"
        )
    if not ready and trial.error is None:
        raise Unclear(no_arguments(about))
    if not ready and "call" not in given and trial.may_be_ours():
        raise Unclear(
            f"no way of calling {about['name']} that was tried runs ({trial.tried} were); the one that gets farthest, "
            f"{trial.farthest}, gives {told(trial.far)}. Say its arguments in calling order, --call t,v_bdp,mask,tau for "
            f"example, or give one a value, --set NAME=VALUE. The words:\n{words()}"
        )
    if not ready and trial.short:
        raise CannotRun(*trial.short)
    if not ready:
        raise CannotRun(trial.error or {}, trial.call, () if "call" in given else trial.notes)
    return as_lists(trial, ready, about, given)


def as_lists(trial, ready: list[Convention], about: dict, given: dict) -> list[Convention]:
    """A loss without a mask that also takes a list of captions: padding is its fault, or it never gets any.

    Raises Unclear where nothing of its own says list.
    """
    first = ready[0]
    if first.word("t") != "t" or first.word("mask") or "call" in given or {"tokens", "mask"} & given.keys():
        return ready
    lists = next(runnable(trial, first, about, given, "lists"), None)
    if lists is None:
        return ready
    name = next(n for n, w in first.arguments if w == "t")
    annotation = next((p["annotation"] for p in about["parameters"] if p["name"] == name), "")
    if re.search(r"list|sequence|iterable", annotation, re.I) or re.search(r"\blists? of\b|ragged|no padding|unpadded",
                                                                          f"{about['doc']} {about['source']}", re.I):
        return finish(trial, lists, about, given)
    raise Unclear(
        f"{about['name']} has no mask, and takes {name} as one padded tensor or as a list of captions (L_i,D), which has no "
        "padding: add --tokens t or --tokens t_list"
    )


def verified(convention: Convention) -> bool:
    """Whether numbers alone support the order: padding is inert and the temperature is one.  A wrong order has neither."""
    sure = {item.what.removeprefix("parameter "): item.sure for item in convention.items}
    names = [n for n, w in [*convention.arguments, *convention.attributes.items()] if w in MASKS or w in SCALES]
    return bool(convention.word("mask")) and all(sure.get(n) in ("certain", "given") for n in names)


def supported(convention: Convention) -> bool:
    """Whether it has what a loss of the paper has where nothing was right: a caption or a token alone is 0."""
    return any(item.what == "returns" and item.sure in ("certain", "given") for item in convention.items)


def offered(names: list[str]) -> str:
    """A --call with a word for each argument: what names say, the usual ones for names that say nothing, then values."""
    usual, found = ("v", "t", "mask", "scale"), dict[str, str]()
    for name in names:
        said = naming.hints(name)
        best = max(said, key=lambda role: said[role]) if said else ""
        if best in (*usual, "v_bar", "t_bar") and best not in found.values():
            found[name] = best
    free = [word for word in usual if word not in found.values()]
    return ",".join(found.get(name) or (free.pop(0) if free else "value:VALUE") for name in names)


def described(worker, request):
    try:
        reply, _ = worker.ask(request)
    except Stopped as stop:
        raise CannotRun({"type": stop.kind, "message": str(stop), "lines": []}, "import") from None
    if worker.how == "process" and worker.load_error:
        raise CannotRun(worker.load_error, "import")
    if "error" in reply:
        lacks = re.search(r"'types.SimpleNamespace' object has no attribute '(\w+)'", str(reply["error"].get("message")))
        if lacks and "construct" in request:              # settings that stood in for theirs
            raise Unclear(f"its constructor reads {lacks[1]} of an object of settings, and no code says its value: add --init "
                          f"NAME.{lacks[1]}=VALUE, NAME being that of the argument")
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
        if p.get("made"):                                 # an object of settings that needs nothing to be made
            continue
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
        elif "default" not in p and naming.is_module(p):  # a tower: the loss is looked at alone
            found[p["name"]] = "module"
        elif "default" not in p:
            raise Unclear(f"{about['name']}: its constructor needs {p['name']!r}: add --init {p['name']}=VALUE")
    return found


def no_arguments(about) -> str:
    names = ", ".join(p["name"] for p in about["parameters"]) or "none"
    said = {p["name"]: naming.hints(p["name"]) for p in about["parameters"] if "default" not in p}
    scales = [name for name, roles in said.items() if roles and max(roles, key=lambda r: roles[r]) == "scale" and len(name) > 1]
    if len(scales) > 1:
        return (f"{about['name']}({names}): {' and '.join(scales)} are both named for a temperature; give one a value, --set "
                f"{scales[-1]}=VALUE, or say all arguments: --call {offered([p['name'] for p in about['parameters']])}")
    return (
        f"{about['name']}({names}): which arguments are patches and tokens? Say it in calling order, for example "
        f"--call v,t,mask,scale. The words:\n{words()}"
    )


def finish(trial: Trial, convention: Convention, about: dict, given: dict) -> list[Convention]:
    """Decide by numbers what names left open: temperature, mask, [CLS], outputs; and say how sure each is."""
    outputs = read_outputs(trial, convention, given)
    convention = decide_text_slot(trial, convention, outputs, given, about)
    convention, scale = decide_scale(trial, convention, outputs, given)
    convention, mask = decide_mask(trial, convention, outputs, given, about)
    if scale[0].sure == "assumed":                        # read the wrong way round, a mask without padding leaves no token
        convention, scale = decide_scale(trial, convention, outputs, given)
    convention, patch_mask = decide_patch_mask(trial, convention, outputs, given)
    convention, scale[0], log_notes = as_named(convention, scale[0], about)
    convention, cls = decide_cls(trial, convention, outputs, given, about)
    ready, returns = decide_outputs(trial, convention, outputs, given, about)
    items = [framework_item(convention, about, given), *argument_items(trial, convention, given)]
    items = [item for item in items if not any(item.what == better.what for better in cls)]
    sigma = sigma_item(trial, convention, outputs, about)
    common = [*items, *cls, *mask, *patch_mask, *scale, *([sigma] if sigma else [])]
    holds = "it holds a pooled embedding, as slot 0 of the tokens does" if convention.word("t") == "t_cls" else (
        "it is read as a [CLS] token's, which the paper has not")
    notes = (*start_notes(convention, about), *(f"{x.what}: {x.why}; {holds}" for x in cls), *log_notes)
    notes = (*notes, *unread_gradients(trial, ready[0]))
    return [replace(c, items=(*common, *said), notes=notes) for c, said in zip(ready, returns)]


def unread_gradients(trial: Trial, convention: Convention) -> list[str]:
    """A note on arrays beside the loss that have an input's shape and were taken for no gradient."""
    if convention.framework not in ("numpy", "cupy") or convention.single:
        return []
    try:
        reply, sent = trial.worker.ask(convention.request(outputs=True), trial.arrays(PLAIN))
    except Stopped:
        return []
    if any(name.startswith("grad/") for name in sent):
        return []
    shapes = {tuple(trial.arrays(PLAIN)[leaf].shape): what for leaf, what in (("v", "patches"), ("t", "tokens"))}
    odd = [(bare(x["path"]), shapes[tuple(x["shape"])]) for x in reply["outputs"] if tuple(x.get("shape", ())) in shapes]
    return [f"output {path} has the shape of the {what} and was taken for no gradient: gradients are read where they are named "
            "for their argument (a dict, d_tokens), or stand behind the loss in the arguments' order, all of them"
            for path, what in odd[:1]]


def count_of(trial, convention, path, out) -> str:
    """The output by which a sum is to be divided: the number of captions, or of tokens; "" where there is none.

    A sum doubles where each sample comes twice; a mean beside a count does not.
    """
    def twice(p):
        return replace(p, **{k: np.concatenate([getattr(p, k)] * 2) for k in ("v", "t", "mask", "v_bar", "t_bar")})

    batches = [PLAIN, uneven(61), uneven(62, (1, 5, 3, 2))]
    found = [name for name, x in out.items() if name not in ("reply", path) and x is not None and np.size(x) == 1]
    answers = [trial.run(convention, p) for p in batches] if found else []
    for kind in (lambda p: p.mask.any(1).sum(), lambda p: p.mask.sum()):
        for name in found:
            if all(a is not None and a.get(name) is not None and float(np.sum(a[name])) == kind(p)
                   for a, p in zip(answers, batches)):
                one, two = (values(trial, convention, p, [path])[0] for p in (batches[1], twice(batches[1])))
                return name if close(2 * one, two) and abs(one) > 1e-9 else ""
    return ""


def read_outputs(trial, convention, given) -> list[str]:
    """Paths of what may be a loss: it changes with the embeddings, and a gradient flows to it where any does."""
    first, second = trial.run(convention, PLAIN), trial.run(convention, probe_of(1))
    if first is None:
        raise CannotRun(trial.error or {"type": "", "message": "no answer", "lines": []}, trial.call)
    paths = numeric(first)
    moving = [p for p in paths if second is None or not np.array_equal(first[p], second.get(p), equal_nan=False)]
    paths = moving or paths
    if len(paths) == 1 and (count := count_of(trial, convention, paths[0], first)):
        return [f"{paths[0]} / {count}"]
    if len(paths) > 1 and convention.framework in ("numpy", "cupy"):
        probing = replace(convention, losses={"fine": ((paths[0],), (1.0,))})
        reply, _ = trial.worker.ask(probing.request(), trial.arrays(PLAIN))
        if (reply.get("paths") or {}).get("fine"):        # it returns its gradients: numbers behind the first array are theirs
            arrays = [what["path"] for what in reply["outputs"] if len(what.get("shape", [])) > 1]
            order = [what["path"] for what in reply["outputs"]]
            paths = [p for p in paths if not arrays or order.index(p) < order.index(arrays[0])] or paths[:1]
    if len(paths) > 1:
        probing = replace(convention, losses={str(i): ((p,), (1.0,)) for i, p in enumerate(paths)})
        try:
            reply, _ = trial.worker.ask(probing.request(), trial.arrays(PLAIN))
        except Stopped:
            return paths
        graded = [p for i, p in enumerate(paths) if reply.get("paths", {}).get(str(i))]
        paths = graded or paths
    return paths
