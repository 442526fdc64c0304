"""What runs in the separate process: load a stranger's callable, describe it, call it, give gradients, catch what it throws.

Requests and replies are one line of JSON each, followed by arrays as safetensors; `worker` is the other end.
An argument is written as
    {"leaf": "v", "layout": "bpd" | "bdp" | "bdhw" | "bhwd" | "cls" | "pbd"}      {"leaf": "v_bar" | "t_bar"}
    {"leaf": "t", "layout": "bld" | "bdl" | "lbd"}
    {"leaf": "theta", "as": "theta" | "scale" | "tau" | "log_tau", "form": "tensor" | "float"}
    {"mask": "bool" | "int64" | "float" | "lengths" | "additive", "invert": true: true marks padding, "turned": true: (L,B)}
    {"patch_mask": "bool" | "int64" | "float", "invert", "extra": 1: with a slot for [CLS]}: every patch is valid
    {"value": any JSON}      {"size": "B" | "L" | "P" | "D" | "H" | "W" | "1/P"}      {"module": true}: a stub
"""

import copy
import json
import math
import os
import random
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from parity.checker.calling import bridges
from parity.checker.calling.arguments import (
    argument,
    chain,
    mean_of,
    one_of,
    own_grads,
    set_attributes,
    size,
    specs_of,
    stubs,
    tower,
)
from parity.checker.calling.load import NotFound, describe, load, source_files, unwrap, with_method
from parity.checker.calling.packing import pack, unpack
from parity.checker.calling.taken import grouped, settings_of

LEAVES = ("v", "t", "v_bar", "t_bar", "theta")
MOST = 1 << 16                                            # entries of an output that is sent back


def serve(reader, writer, target=None, device="cpu") -> None:
    """Answer requests until the other end hangs up.  target: an object in a forked process, else it is loaded on request."""
    state = {"device": device, "made": {}, "target": None} if target is None else state_of(target, device)
    word = reader.readline(100).strip()                   # before their code is loaded; see `worker`
    while True:
        line = reader.readline(1 << 20)
        if not line:
            return
        request = json.loads(line)
        arrays = unpack(reader.read(request["bytes"])) if request.get("bytes") else {}
        if request["do"] == "quit":
            return
        try:
            reply, sent = answer(state, request, arrays)
        except KeyboardInterrupt:
            return
        except BaseException as error:                    # also SystemExit: their code may call sys.exit
            reply, sent = {"error": told(error, state)}, {}
        body = pack(sent)
        writer.write(word + b" " + json.dumps(reply | {"bytes": len(body)}, default=repr).encode() + b"\n" + body)
        writer.flush()


def state_of(target, device) -> dict[str, Any]:
    """What is remembered between requests, for an object that is here already.  Raises NotFound where it has no one method."""
    found = with_method(target, None, type(target).__name__)
    if isinstance(found, list):
        raise NotFound(f"{type(target).__name__} has several methods that could be the loss: pass one of {', '.join(found)}")
    return {"target": found[0], "method": found[1], "made": {}, "device": device}


def answer(state, request, arrays):
    """One request.      -> JSON reply, arrays"""
    if request["do"] == "ready":
        return {}, {}
    if request["do"] == "load":
        sys.argv = [request.get("file") or request.get("module") or "check"]
        sys.path[:0] = [p for p in request.get("path", []) if p not in sys.path]
        found = load(request)
        state["made"].clear()
        if isinstance(found, list):
            return {"candidates": found}, {}
        state["target"], state["method"] = found
        state["made"].clear()
        state.pop("compiled", None)
        return {"ok": True, "rss": resident()}, {}
    if request["do"] == "describe":
        state["stage"] = "construct" if "construct" in request else "describe"
        target = state["target"]
        if "construct" in request:
            target = construct(state, request, {name: np.zeros(shape) for name, shape in request["shapes"].items()})
            return describe(target), {}
        return describe(target, state.get("method")), {}
    assert request["do"] == "call", request["do"]
    return call(state, request, arrays)


def call(state, request, arrays):
    """Run the implementation on a probe.      -> {"outputs", "losses", "mutated", "peak"}, {"grad/fine/v", "stage/0", ...}"""
    dtype = request.get("dtype", "float64")
    state["stage"] = "construct"
    fw = bridges.bridge(request["framework"], state["device"])
    fn = construct(state, request, arrays)
    state["stage"] = "call"
    seed(request.get("seed", 0))
    leaves = {name: fw.array(arrays[name], dtype) for name in LEAVES if name in arrays}
    watched: list[tuple[str, Any, np.ndarray]] = []
    passed: set[str] = set()

    def run(leaves):
        extra, undo = set_attributes(fn, request, leaves, fw, arrays, dtype)
        args = [argument(spec, leaves, fw, arrays, dtype) for spec in request.get("args", [])]
        named = {name: argument(spec, leaves, fw, arrays, dtype) for name, spec in request.get("kwargs", {}).items()}
        if request.get("mutation"):
            pairs = [*zip(request.get("labels", []), args), *named.items()]
            watched.extend((str(name), x, was) for name, x in pairs if (was := bridges.to_numpy(x)) is not None)
        try:
            with stubs(fn, request.get("stub"), leaves):
                outputs = called(grouped(fn, list(named)), request, args, named, arrays, fw)
        finally:
            undo()
        passed.update(x["leaf"] for x in specs_of(request) if "leaf" in x and x.get("form") != "float")
        passed.update(extra)
        state["stage"] = "output"
        flat = dict(bridges.flatten(outputs))
        losses = {name: choose(flat, how, fw, arrays, dtype) for name, how in request.get("losses", {}).items()}
        state["stage"] = "call"
        return outputs, losses, extra

    reply: dict[str, Any] = {}
    sent: dict[str, np.ndarray] = {}
    if request.get("trace") and fw.name == "jax":
        from parity.checker.calling import bridge_jax

        arguments, named = jax_arguments(state, request, arrays, dtype)
        stages = bridge_jax.stages(grouped(fn, list(named)), arguments, named, source_files(state["target"]))
        return {"stages": [where for where, _ in stages]}, {f"stage/{i}": x for i, (_, x) in enumerate(stages)}
    if request.get("trace"):
        from parity.checker.calling.trace import traced

        with traced(source_files(state["target"]), fw.name, request.get("bounds")) as stages:
            outputs, losses, _ = run(leaves)
        grads = dict.fromkeys(losses)
        reply["stages"] = [where for where, _ in stages]
        sent |= {f"stage/{i}": x for i, (_, x) in enumerate(stages)}
    elif request.get("memory"):
        from parity.checker.calling.trace import peak_bytes

        with peak_bytes(fw.name) as peak:
            (outputs, losses, _), grads = run(leaves), {}
        reply["peak"] = peak()
    elif fw.name == "jax":
        outputs, losses, grads = jax_call(state, fn, request, arrays, dtype, passed)
    elif request.get("grads", True):
        outputs, losses, grads = fw.differentiate(run, leaves, request.get("upstream", 1.0))
    else:
        (outputs, losses, _), grads = run(leaves), {}
    flat = bridges.flatten(outputs)
    reply["outputs"] = []
    for i, (path, x) in enumerate(flat):
        value = bridges.to_numpy(x)
        what = {"path": path, "type": type(x).__name__, "framework": bridges.framework_of(x)}
        if value is not None:
            what |= {"shape": list(value.shape), "dtype": str(getattr(x, "dtype", value.dtype)).split(".")[-1]}
            if value.size <= MOST and request.get("outputs"):
                sent[f"out/{i}"] = value
        reply["outputs"].append(what)
    own = None
    if not any(grads.values()) and request.get("grads", True):
        own = own_grads(request, flat, arrays) or own_grads(request, backward_of(fn), arrays)
    if own and "upstream" in request:                     # it gave its gradient; nobody can scale the loss before that
        own = None
    reply["losses"], reply["paths"] = {}, {}
    for name, loss in losses.items():
        value = bridges.to_numpy(loss)
        reply["losses"][name] = None if value is None or value.size != 1 else repr(float(value.reshape(())))
        found = own if own and grads.get(name) is None else grads.get(name)
        reply["paths"][name] = None if found is None else sorted(leaf for leaf, g in found.items() if g is not None)
        for leaf, g in (found or {}).items():
            g = bridges.to_numpy(g) if g is not None else None
            if g is not None:
                sent[f"grad/{name}/{leaf}"] = chain(leaf, g, request, arrays, own is found or fw.name == "jax")
    reply["passed"] = sorted(passed)
    reply["mutated"] = [name for name, x, was in watched if not same(bridges.to_numpy(x), was)]
    return reply, sent


def called(fn, request, args, named, arrays, fw):
    """The function's answer; one that takes a single sample is called for each."""
    if not request.get("single"):
        outputs = fn(*args, **named)
        if type(outputs) is list and len(outputs) == len(arrays["mask"]) > 0 and all(
                np.shape(bridges.to_numpy(x)) == () for x in outputs):
            return bridges.Each({"each": sum(outputs) / len(outputs)})  # a list with the loss of each sample
        return outputs
    kwargs = request.get("kwargs", {})
    return mean_of([
        fn(*(one_of(x, spec, i) for x, spec in zip(args, request.get("args", []))),
           **{name: one_of(x, kwargs[name], i) for name, x in named.items()})
        for i in range(len(arrays["mask"]))
    ], arrays, fw)


def jax_arguments(state, request, arrays, dtype):
    """Arguments and keyword arguments, computed in NumPy."""
    host, fw = bridges.numpy_bridge(), bridges.bridge("jax", state["device"])
    leaves = {name: np.asarray(arrays[name], np.float64) for name in LEAVES if name in arrays}

    def made(spec):
        x = argument(spec, leaves, host, arrays, dtype)
        kind = dtype if "leaf" in spec or spec.get("mask") in ("float", "additive") else None
        return fw.array(x, kind) if hasattr(x, "dtype") and kind else x

    return [made(s) for s in request.get("args", [])], {k: made(s) for k, s in request.get("kwargs", {}).items()}


def jax_call(state, fn, request, arrays, dtype, passed):
    """As `differentiate`, with arguments made in NumPy: gradients are with respect to arguments, `chain` does the rest."""
    from parity.checker.calling import bridge_jax

    host, fw = bridges.numpy_bridge(), bridges.bridge("jax", state["device"])
    leaves = {name: np.asarray(arrays[name], np.float64) for name in LEAVES if name in arrays}
    _, undo = set_attributes(fn, request, leaves, host, arrays, dtype)
    arguments, named = jax_arguments(state, request, arrays, dtype)
    pairs = [*enumerate(request.get("args", [])), *request.get("kwargs", {}).items()]
    wrt = {place: s["leaf"] for place, s in pairs if "leaf" in s and s.get("form") != "float"}
    passed.update(wrt.values())

    def losses_of(outputs):
        flat = dict(bridges.flatten(outputs))
        return {name: choose(flat, how, fw, arrays, dtype) for name, how in request.get("losses", {}).items()}

    key = json.dumps([{k: request.get(k) for k in ("args", "kwargs", "losses", "construct", "set", "method")}, dtype,
                      arrays["mask"].tolist(), None if not request.get("set") else float(arrays["theta"])])
    floats = [x for x in (*arguments, *named.values()) if not hasattr(x, "dtype")]
    try:
        outputs, losses, grads = bridge_jax.call(
            grouped(fn, list(named)), arguments, named, list(wrt), losses_of, key + repr(floats),
            state.setdefault("compiled", {}), request.get("grads", True), request.get("upstream", 1.0))
    finally:
        undo()
    by_leaf = {name: None if g is None else {wrt[place]: x for place, x in g.items()} for name, g in grads.items()}
    return outputs, losses, by_leaf


def backward_of(fn):
    """What the backward method beside a forward gives, taken apart; nothing where there is no such pair."""
    owner = getattr(fn, "__self__", None)
    back = getattr(owner, "backward", None)
    if owner is None or not callable(back) or torch_module(fn) is not None or getattr(fn, "__name__", "") == "backward":
        return []
    for arguments in ((), (1.0,)):
        try:
            given = back(*arguments)
        except TypeError:
            continue
        return [("", 0.0), *bridges.flatten(vars(owner) if given is None else given)]
    return []


def same(x, was):
    """Whether an argument still holds what it held."""
    return x is not None and x.shape == was.shape and np.array_equal(x, was, equal_nan=was.dtype.kind == "f")


def construct(state, request, arrays):
    """The callable itself: a class is constructed (once per set of arguments), a method taken from its instance."""
    target, method = state["target"], state.get("method")
    dtype, train = request.get("dtype", "float64"), bool(request.get("train"))
    if isinstance(target, type):
        arguments = {name: size(spec, arrays) if "size" in spec else spec.get("value")
                     for name, spec in request.get("construct", {}).items()}
        key = json.dumps([arguments, dtype, train], default=repr, sort_keys=True)
        if key not in state["made"]:
            seed(0)
            width = np.shape(arrays["v"])[-1]
            arguments |= {name: tower(width) for name, spec in request.get("construct", {}).items() if "module" in spec}
            arguments |= {name: x for name, x in settings_of(target).items() if name not in arguments and not any(
                n.startswith(f"{name}.") for n in arguments)}
            state["made"][key] = prepare(grouped(target, list(arguments))(**arguments), state["device"], dtype, train)
        target = state["made"][key]
    elif torch_module(target) is not None:                # a copy: the user's own would change its dtype under their hands
        key = f"{dtype} {train}"
        if key not in state["made"]:
            state["made"][key] = prepare(copy.deepcopy(target), state["device"], dtype, train)
        target = state["made"][key]
    name = request.get("method") or method
    return getattr(target, name) if name else target


def prepare(target, device, dtype, train):
    """A module on the device, in the precision of the probe; in evaluation mode unless asked otherwise, since dropout would
    answer differently each time."""
    if (module := torch_module(target)) is not None:
        import torch

        module.to(device=device, dtype=getattr(torch, dtype)).train(train)
    return target


def torch_module(target):
    torch = sys.modules.get("torch")
    owner = getattr(target, "__self__", target)
    return owner if torch is not None and isinstance(owner, torch.nn.Module) else None


def choose(flat, how, fw, arrays, dtype):
    """The loss that was asked for: the outputs at some paths, each reduced to one number, then summed with weights."""
    total = None
    for path, weight in zip(how["paths"], how.get("weights") or [1.0] * len(how["paths"])):
        path, _, count = path.partition(" / ")            # a sum, and the output by which it is to be divided
        if path not in flat or (count and count not in flat):
            raise LookupError(f"no output {path or 'value'}; there are {', '.join(flat) or 'none'}")
        x = flat[path] / flat[count] if count else flat[path]
        shape = tuple(getattr(x, "shape", ()))
        if math.prod(shape) == 1 and shape:
            x = fw.reshape(x, ())
        elif shape:                                       # not reduced: per caption, or per token as eq. 6 would weigh them
            mask = arrays["mask"]
            if shape == mask.shape:
                share = mask / (np.maximum(1, mask.sum(1, keepdims=True)) * len(mask))
            elif shape == mask.shape[:1]:
                share = np.full(len(mask), 1 / len(mask))
            elif shape == (int(mask.sum()),):             # per real token, in their order
                share = (mask / (np.maximum(1, mask.sum(1, keepdims=True)) * len(mask)))[mask]
            else:
                raise LookupError(f"output {path or 'value'} has shape {shape}: expected a number, (B,), (B,L) or one for "
                                  "each real token")
            x = (x * fw.array(share, dtype))
            x = x.sum() if hasattr(x, "sum") else sum_tensorflow(x)
        if weight != 1.0:
            x = x * weight
        total = x if total is None else total + x
    return total


def sum_tensorflow(x):
    import tensorflow as tf

    return tf.reduce_sum(x)


def told(error, state):
    """An exception as JSON: its type and words, the last lines of their code, and where it was raised."""
    files = set(source_files(state.get("target"))) if state.get("target") is not None else set()
    frames = traceback.extract_tb(error.__traceback__)
    here = str(Path(__file__).parents[2])
    theirs = [f for f in frames if f.filename in files]
    if not theirs:                                        # an import that fails, a helper elsewhere
        theirs = [f for f in frames if not f.filename.startswith((here, "<frozen")) and "importlib" not in f.filename]
    lines = [f"{Path(f.filename).name}:{f.lineno} in {f.name}:  {f.line}" for f in theirs[-3:]]
    words = str(error)
    if isinstance(error, SyntaxError):
        lines = [f"{Path(error.filename or '?').name}:{error.lineno}:  {(error.text or '').strip()}"]
    return {
        "type": type(error).__name__, "message": words[:2000], "lines": lines, "stage": state.get("stage", "load"),
        "entry": theirs[0].lineno if theirs else None,
        "deepest": f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "",
        "theirs": bool(files & {f.filename for f in frames}),
    }


def seed(number):
    """The same random numbers at every call; None leaves them as they are."""
    if number is None:
        return
    random.seed(number)
    np.random.seed(number)                                # noqa: NPY002  theirs may use it
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(number)
    if (tf := sys.modules.get("tensorflow")) is not None:
        tf.random.set_seed(number)


def resident() -> int:
    """Bytes of memory in use; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


__all__ = ["construct", "pack", "serve", "unpack", "unwrap"]
