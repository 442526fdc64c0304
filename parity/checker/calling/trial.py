"""A call with a convention that may be wrong, and the errors of deciding between several."""

import re
from typing import Any

import numpy as np

from parity.checker.calling.caller import Convention, arrays_of, told
from parity.checker.calling.worker import Stopped, Worker
from parity.checker.probes import WIDTH, Probe

SHAPES = re.compile(r"shape|size|dimension|dims?\b|broadcast|mat1|einsum|einops|subscript|expand|must match|axis|permut", re.I)
OTHER_THINGS = re.compile(r"values to unpack|invalid data type 'str'|only integers, slices|has no attribute '(items|keys|get)'|"
                          r"too many indices for tensor of dimension 0")
MEMORY = re.compile(r"^memory|MemoryError|alloc\w* memory|out of memory|unable to allocate", re.I)
RESHAPED = re.compile(r"invalid for input of size|reshape|unflatten|view\(|AssertionError|square|rearrange", re.I)
PATCHES, TOKENS = 10, 6                                   # of the probes here; 2 x 5 for feature maps
SQUARE = 25                                               # for code that makes a square of them


class Unclear(ValueError):
    """Two readings remain: the message names the keyword that decides."""


class CannotRun(Exception):
    """No call succeeded.  `error` as the worker gives it: type, message, lines; `call`: how it was called."""

    def __init__(self, error: dict, call: str, notes: tuple[str, ...] = ()):
        super().__init__(told(error))
        self.error, self.call, self.notes = error, call, notes


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

    def __init__(self, worker: Worker, patches: int | None = None):
        """patches: every batch gets so many, in place of its own number."""
        self.worker, self.patches = worker, patches
        self.error: dict | None = None
        self.last: dict = {}
        self.stops = 0
        self.tried, self.farthest = 0, ""                 # the call that got farthest in their code
        self.far: dict = {}                               # and its error
        self.entries: set[int | None] = set()
        self.kinds: set[tuple[str | None, ...]] = set()   # of errors: type, message, the last line of their code
        self.known: dict[tuple, list[float]] = {}         # answers of `measuring.values`
        self.odd = ""                                     # a call that ran and what came out, where that can be no loss
        self.no_loss = False                              # a call ran that gave nothing, or arrays of three axes alone
        self.call = ""
        self.short: tuple[dict, str] | None = None        # the first call that ran out of memory, and its error
        self.reshaped = False                             # an array could not be cut into the axes that the code wants

    def arrays(self, probe: Probe) -> dict[str, np.ndarray]:
        """The probe as it is put."""
        arrays, (batch, given, width) = arrays_of(probe), probe.v.shape
        if self.patches is not None:
            more = np.random.default_rng([77, self.patches]).standard_normal((batch, max(0, self.patches - given), width))
            arrays["v"] = np.concatenate([probe.v, more], axis=1)
        return arrays

    def run(self, convention: Convention, probe: Probe, grads: bool = False) -> dict[str, Any] | None:
        """Output path -> value (NumPy), or None when it raised.  "graded": paths that a gradient flows to."""
        try:
            reply, sent = self.worker.ask(convention.request(grads=grads, outputs=True), self.arrays(probe))
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
        arrays = [x for x in out.values() if isinstance(x, np.ndarray)]
        self.no_loss = self.no_loss or all(x.ndim > 2 for x in arrays)
        if not self.odd and not numeric(out):
            each = reply["outputs"][:4]
            shapes = [f"{what['type']} {tuple(what['shape'])}" if "shape" in what else what["type"] for what in each]
            self.odd = f"{convention} returns {', '.join(shapes) or 'nothing'}"
        return out

    def may_be_ours(self) -> bool:
        """Whether the error may be of a wrong call of ours rather than of their code.

        So where Python refused the arguments, where an input was taken apart into another number of axes or was no array, and
        where shapes do not fit in the likeliest call while another call gets farther.
        """
        error = self.error or {}
        words = f"{error.get('type')}: {error.get('message')}"
        if error.get("type") == "TypeError" and error.get("entry") is None:
            return True
        if OTHER_THINGS.search(words) or error.get("type") == "AssertionError":
            return True
        farther = (self.far.get("entry") or 0) > (error.get("entry") or 0)
        return bool(farther and SHAPES.search(words))

    @property
    def notes(self) -> tuple[str, ...]:
        """What to say beside an error of shapes that no layout avoids: it may be theirs, or a layout that was not tried."""
        if (self.error or {}).get("entry") is None:
            return ()
        batch = f"the batch that it was called with is the checker's: B 3, P {self.patches or PATCHES}, L {TOKENS}, D {WIDTH}"
        if not SHAPES.search(str((self.error or {}).get("message"))):
            return (batch,)
        return (batch, f"{self.tried} ways of calling it were tried, and none runs; if its arguments are laid out otherwise, "
                "the fault is that of the call: --call, --patches, --tokens and --mask say another")

    def keep(self, error, convention):
        """The first error is the one of the likeliest call."""
        self.reshaped = self.reshaped or bool(RESHAPED.search(f"{error.get('type')}: {error.get('message')}"))
        self.last = error
        self.tried += 1
        if self.short is None and MEMORY.search(f"{error.get('type')}: {error.get('message')}"):
            self.short = error, str(convention)
        self.kinds.add((error.get("type"), str(error.get("message")), *error.get("lines", [])[-1:]))
        self.entries.add(error.get("entry"))
        if not self.far or (error.get("entry") or 0) > (self.far.get("entry") or 0):
            self.far, self.farthest = error, str(convention)
        if self.error is None:
            self.error, self.call = error, str(convention)


def numeric(out) -> list[str]:
    """Paths of outputs that could be a loss: numbers, one per caption, or one per token."""
    mask = PLAIN.mask.shape
    fits = [
        path for path, x in out.items()
        if path != "reply" and x is not None and np.asarray(x).dtype.kind == "f"
        and (x.size == 1 or x.shape in (mask, mask[:1], (int(PLAIN.mask.sum()),)))
    ]
    scalars = [path for path in fits if out[path].size == 1]
    return scalars or fits
