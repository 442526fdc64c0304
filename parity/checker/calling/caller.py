"""A calling convention, and probes put to an implementation through it.

    ask = Caller(worker, convention)
    ask(probe)                  -> Answer: losses, gradients by input
    ask(probe, trace=True)      -> the same with the arrays that it made on the way
"""

import difflib
import json
import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from parity.checker.calling.worker import Stopped, Worker
from parity.checker.probes import Answer, Probe

LAYOUTS = {"v": "bpd", "v_bdp": "bdp", "v_bdhw": "bdhw", "v_bhwd": "bhwd", "v_cls": "cls", "v_pbd": "pbd",
           "v_pbd_cls": "pbd_cls", "v_list": "list", "v_flat": "flat"}
CLS = {"v": "v_cls", "v_pbd": "v_pbd_cls"}                # the same layout with a [CLS] slot before the patches
TEXTS = {"t": "bld", "t_bdl": "bdl", "t_lbd": "lbd", "t_list": "list", "t_packed": "packed", "t_flat": "flat",
         "t_cls": "cls", "t_zero": "zero", "t_nan": "nan"}
MASKS: dict[str, dict[str, Any]] = {
    "mask": {"mask": "bool"}, "mask_int": {"mask": "int64"}, "mask_float": {"mask": "float"}, "lengths": {"mask": "lengths"},
    "padding": {"mask": "bool", "invert": True}, "padding_int": {"mask": "int64", "invert": True},
    "padding_float": {"mask": "float", "invert": True}, "additive": {"mask": "additive"},
    "mask_lb": {"mask": "bool", "turned": True}, "mask_lb_float": {"mask": "float", "turned": True},
    "padding_lb": {"mask": "bool", "invert": True, "turned": True}, "owner": {"mask": "owner"},
    "cu_seqlens": {"mask": "cu_seqlens"}, "ends": {"mask": "ends"}, "lengths_list": {"mask": "lengths", "listed": True},
}
WIDE = {"b1l": "(B,1,L)", "b11l": "(B,1,1,L)", "bl1": "(B,L,1)", "flat": "(B L,)"}
MASKS |= {f"{word}_{axes}": MASKS[word] | {"axes": axes}
          for axes in WIDE for word in ("mask", "mask_float", "additive", "padding", "mask_int")}
SLOTTED = ("mask", "mask_int", "mask_float", "padding", "padding_float", "lengths", "additive")
MASKS |= {f"{word}_cls": MASKS[word] | {"extra": 1} for word in SLOTTED}  # with the slot that the tokens have before them
MASKS |= {"mask_bll": {"mask": "bool", "axes": "bll"}, "mask_bll_float": {"mask": "float", "axes": "bll"}}
PACKED = ("owner", "cu_seqlens")                          # what says where the captions of packed tokens are
PATCH_MASKS: dict[str, dict[str, Any]] = {
    "v_mask": {"patch_mask": "bool"}, "v_mask_int": {"patch_mask": "int64"}, "v_mask_float": {"patch_mask": "float"},
    "v_padding": {"patch_mask": "bool", "invert": True}, "v_padding_int": {"patch_mask": "int64", "invert": True},
    "v_padding_float": {"patch_mask": "float", "invert": True}, "v_lengths": {"patch_mask": "lengths"},
    "v_cu_seqlens": {"patch_mask": "cu_seqlens"}, "v_owner": {"patch_mask": "owner"},
}
AUTOGRAD = ("torch", "jax", "tensorflow")
SCALES = ("theta", "scale", "tau", "log_tau")
SHOWN = {
    "v": "patches (B,P,D)", "v_bdp": "patches (B,D,P)", "v_bdhw": "patches (B,D,H,W)", "v_bhwd": "patches (B,H,W,D)",
    "v_cls": "[CLS] and patches (B,1+P,D)", "v_pbd": "patches (P,B,D)",
    "v_pbd_cls": "[CLS] and patches (1+P,B,D)", "t": "tokens (B,L,D)", "t_bdl": "tokens (B,D,L)",
    "t_lbd": "tokens (L,B,D)", "v_bar": "pooled image (B,D)", "t_bar": "pooled text (B,D)",
    "mask": "mask, true = real token", "mask_int": "mask of 0 and 1, 1 = real token",
    "mask_float": "mask of 0.0 and 1.0, 1 = real token",
    "lengths": "number of real tokens (B,)", "padding": "mask, true = padding", "padding_int": "mask of 0 and 1, 1 = padding",
    "padding_float": "mask of 0.0 and 1.0, 1 = padding", "additive": "mask to add, 0 = real token",
    "mask_lb": "mask (L,B), true = real token", "mask_lb_float": "mask (L,B) of 0.0 and 1.0, 1 = real token",
    "padding_lb": "mask (L,B), true = padding", "v_mask": "mask of patches, true = valid; all are",
    "v_mask_int": "mask of patches, 1 = valid; all are", "v_mask_float": "mask of patches, 1.0 = valid; all are",
    "v_padding": "mask of patches, true = padding; none is", "v_padding_int": "mask of patches, 1 = padding; none is",
    "v_padding_float": "mask of patches, 1.0 = padding; none is", "theta": "log(1/tau)",
    "scale": "1/tau", "tau": "tau", "log_tau": "log tau", "v_list": "a list of patches (P,D)",
    "t_list": "a list of captions (L_i,D), no padding", "t_packed": "all real tokens (N,D)",
    "owner": "sample of each token (N,)", "cu_seqlens": "where captions begin and end (B+1,)",
}
SHOWN |= {"mask_bll": "mask (B,L,L), true = two real tokens", "mask_bll_float": "mask (B,L,L), 1.0 = two real tokens"}
SHOWN |= {
    "v_flat": "patches (B P,D)", "t_flat": "tokens (B L,D), padded", "t_cls": "[CLS] and tokens (B,1+L,D)",
    "t_zero": "tokens (B,L,D), zeros at padding", "t_nan": "tokens (B,L,D), NaN at padding", "ends": "last real token (B,)",
    "lengths_list": "number of real tokens, a list", "v_lengths": "number of patches (B,)",
    "v_cu_seqlens": "where pictures begin and end (B+1,)", "v_owner": "sample of each patch (B P,)",
}
SHOWN |= {f"{word}_cls": f"{SHOWN[word]}, [CLS] counted" for word in SLOTTED}
SHOWN |= {f"{word}_{axes}": SHOWN[word].replace("mask", f"mask {shape}", 1)
          for axes, shape in WIDE.items() for word in ("mask", "mask_float", "additive", "padding", "mask_int")}


@dataclass(frozen=True)
class Item:
    """One thing that was found out about a convention.  sure: "given" | "certain" | "likely" | "assumed"."""

    what: str
    value: str
    sure: str
    why: str


@dataclass(frozen=True)
class Convention:
    """How an implementation is called and which of its outputs are losses.

    arguments   (name, word) in calling order; a word is one of SHOWN, "size:P", or "value:JSON"; "module" in construct
    keywords    names of the arguments that go by keyword
    attributes  name -> one of SCALES, set before each call       construct: constructor's arguments, as words
    losses      "fine" | "global" | "total" -> (paths, weights) of the outputs that make it up
    stubs       part of a model -> "v" | "t": gives that embedding | "identity": passes on what it gets
    single      it takes one sample, (P,D) and (L,D): it is called for each, and the mean is taken here
    notes       what was seen beside it, each a sentence
    """

    name: str
    framework: str
    arguments: tuple[tuple[str, str], ...]
    keywords: frozenset[str] = frozenset()
    attributes: dict[str, str] = field(default_factory=dict)
    construct: dict[str, str] = field(default_factory=dict)
    losses: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = field(default_factory=dict)
    stubs: dict[str, str] = field(default_factory=dict)
    method: str | None = None
    theta_form: str = "tensor"
    dtype: str = "float64"
    single: bool = False
    items: tuple[Item, ...] = ()
    notes: tuple[str, ...] = ()

    def word(self, role: str) -> str | None:
        """The word by which a role is given: of "v", "t", "mask", "v_mask", "scale", "v_bar", "t_bar"."""
        groups: dict[str, Any] = {"v": LAYOUTS, "t": TEXTS, "mask": MASKS, "v_mask": PATCH_MASKS, "scale": SCALES}
        words = [w for _, w in self.arguments] + list(self.attributes.values())
        return next((w for w in words if w in groups.get(role, (role,))), None)

    @property
    def written(self) -> str:
        """The call as --call takes it: v,t,mask=mask_float."""
        return ",".join(f"{name}={word}" if name in self.keywords else word for name, word in self.arguments)

    def __str__(self) -> str:
        each = "one sample a call: " if self.single else ""
        return f"{each}{self.name}({', '.join(f'{name}={shown_word(word)}' for name, word in self.arguments)})"

    def request(self, **more: Any) -> dict:
        """The worker's request for one call."""
        def argument(word):
            slots = {"extra": 1} if word in PATCH_MASKS and self.word("v") in CLS.values() else {}
            return spec(word) | ({"form": self.theta_form} if word in SCALES else slots)

        plain = [(name, argument(word)) for name, word in self.arguments if name not in self.keywords]
        return {
            "do": "call", "framework": self.framework, "dtype": self.dtype, "labels": [name for name, _ in plain],
            "args": [s for _, s in plain],
            "kwargs": {name: argument(word) for name, word in self.arguments if name in self.keywords},
            "set": {name: spec(word) for name, word in self.attributes.items()}, "stub": self.stubs, "method": self.method,
            "single": self.single,
            "construct": {name: spec(word) for name, word in self.construct.items()},
            "losses": {name: {"paths": list(paths), "weights": list(weights)} for name,
                       (paths, weights) in self.losses.items()},
        } | more


def shown_word(word: str) -> str:
    kind, _, rest = word.partition(":")
    if word == "module":
        return "a stub that passes on what it gets"
    return SHOWN.get(word) or (f"{rest} of the probe" if kind == "size" else rest)


def spec(word: str) -> dict:
    """A word of a convention as the worker's description of an argument.  Raises ValueError for an unknown one."""
    kind, colon, rest = word.partition(":")
    if colon and kind == "size":
        return {"size": rest}
    if colon and kind == "value":
        return {"value": json.loads(rest)}
    if word in LAYOUTS:
        return {"leaf": "v", "layout": LAYOUTS[word]}
    if word in TEXTS:
        return {"leaf": "t", "layout": TEXTS[word]}
    if word in MASKS or word in PATCH_MASKS:
        return dict((MASKS | PATCH_MASKS)[word])
    if word == "module":                                  # of a constructor alone
        return {"module": True}
    if word in SCALES:
        return {"leaf": "theta", "as": word}
    if word in ("v_bar", "t_bar"):
        return {"leaf": word}
    near = difflib.get_close_matches(word, SHOWN, 1)
    raise ValueError(f"{word!r}: expected one of these words{f'; did you mean {near[0]!r}?' if near else ''}\n{words()}")


def words(full: bool = False) -> str:
    """The words of a convention, by what they stand for; with what each means where `full`."""
    groups: dict[str, Any] = {"patches": LAYOUTS, "tokens": TEXTS, "mask": MASKS, "temperature": SCALES,
                              "pooled": ("v_bar", "t_bar"), "mask of patches": PATCH_MASKS}
    if full:
        return "\n".join(f"  {name}\n" + "\n".join(f"    {w:20}{SHOWN[w]}" for w in some) for name, some in groups.items())
    plain = [w for w in MASKS if not w.endswith(("_cls", "_bll", "_bll_float", *(f"_{axes}" for axes in WIDE)))]
    groups["mask"] = [*plain, "and some of them with _b1l, _b11l, _bl1, _flat, _cls or _bll behind: other axes"]
    lines = [f"  {name:17}{', '.join(some)}" for name, some in groups.items()]
    lines.append("  a value          value:0.5, value:true and so on; size:P, size:L, size:B, size:D, size:1/P: of each batch")
    return "\n".join([*lines, "  what each means: sparc-ref check --call help"])


def check_words(given: dict[str, Any]) -> None:
    """Raises ValueError for an option whose word is none of its kind, and for the word help."""
    if given.get("call") == "help":
        raise ValueError(f"the words that say how a loss is called, --call v,t,mask,scale for example\n{words(full=True)}")
    kinds: dict[str, Any] = {"patches": LAYOUTS, "tokens": TEXTS, "mask": (*MASKS, "none"), "scale": (*SCALES, "fixed")}
    for option, some in kinds.items():
        if given.get(option) not in (None, *some):
            near = difflib.get_close_matches(str(given[option]), list(some), 1)
            raise ValueError(f"{option}: expected one of {', '.join(some)}; got {given[option]!r}"
                             + (f". Did you mean {near[0]}?" if near else ""))


def arrays_of(probe: Probe) -> dict[str, np.ndarray]:
    return {
        "v": probe.v, "t": probe.t, "mask": probe.mask, "theta": np.asarray(probe.theta, np.float64),
        "v_bar": probe.v_bar, "t_bar": probe.t_bar,
    }


class Caller:
    """Puts probes to an implementation and remembers the answers."""

    def __init__(self, worker: Worker, convention: Convention):
        self.worker, self.convention = worker, convention
        self.known: dict[tuple, Answer] = {}
        self.paths: dict[str, set[str]] = {}              # loss -> leaves that it is connected with
        self.calls = 0

    def __call__(self, probe: Probe, trace: bool = False) -> Answer:
        arrays = arrays_of(probe)
        key = tuple((x.shape, x.tobytes()) for x in arrays.values())
        if key not in self.known:
            self.calls += 1
            self.known[key] = self.call(probe)
        answer = self.known[key]
        if trace and answer.stages is None and answer.error is None:
            self.known[key] = answer = replace(answer, stages=self.stages(probe))
        return answer

    def call(self, probe: Probe, **more: Any) -> Answer:
        """One call, not remembered."""
        arrays = arrays_of(probe)
        try:
            reply, sent = self.worker.ask(self.convention.request(**more), arrays)
        except Stopped as stop:
            if stop.kind == "budget":
                raise
            return Answer(error=f"{stop.kind}: {stop}")
        if "error" in reply:
            return Answer(error=told(reply["error"]))
        losses = {name: number(value) for name, value in reply["losses"].items()}
        grads: dict[str, dict[str, np.ndarray]] = {}
        for name, x in sent.items():
            kind, _, rest = name.partition("/")
            if kind == "grad":
                loss, _, leaf = rest.partition("/")
                if x.shape == arrays[leaf].shape:
                    grads.setdefault(loss, {})[leaf] = x.astype(np.float64)
        given = set(reply["passed"])
        for name, leaves in reply["paths"].items():
            if leaves is not None:
                self.paths.setdefault(name, set()).update(leaves)
                own = {"fine": {"v", "t", "theta"}, "global": {"v_bar", "t_bar", "theta"} & given or {"v", "t", "theta"}}
                for leaf in own.get(name, given) & given if leaves and self.convention.framework in AUTOGRAD else ():
                    grads.setdefault(name, {}).setdefault(leaf, np.zeros_like(arrays[leaf]))  # no path to it: detached
        return Answer(losses, grads, dtype="float32" if single(losses) else "float64")

    def again(self, probe: Probe, upstream: float = 1.0, dtype: str | None = None) -> Answer:
        """The same batch with the loss multiplied before its gradient is taken, or in another precision; not remembered."""
        if dtype is not None:
            return Caller(self.worker, replace(self.convention, dtype=dtype)).call(probe)
        return self.call(probe, upstream=upstream)

    def stages(self, probe: Probe) -> list[tuple[str, np.ndarray]] | None:
        """The arrays that it makes on the way, in order; None where it cannot be traced."""
        if self.convention.single:                        # arrays of one sample are no stages of a batch
            return None
        try:
            reply, sent = self.worker.ask(self.convention.request(trace=True), arrays_of(probe))
        except Stopped:
            return None
        return [(where, sent[f"stage/{i}"]) for i, where in enumerate(reply["stages"])] if "stages" in reply else None


def single(losses) -> bool:
    """Whether every loss fits float32 exactly: then it was computed in float32 whatever came in."""
    values = [x for x in losses.values() if math.isfinite(x) and x]
    return bool(values) and all(abs(x) < 1e38 and float(np.float32(x)) == x for x in values)


def number(value: str | None) -> float:
    return math.nan if value is None else float(value)


def told(error: dict) -> str:
    """An exception of theirs in one line."""
    first = error["message"].splitlines()[0] if error["message"] else ""
    where = f" at {error['lines'][-1]}" if error.get("lines") else ""
    return f"{error['type']}: {first}{where}"
