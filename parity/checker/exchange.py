"""An implementation in any language: batches in a folder, answers beside them.

    sparc-ref check --export DIR        writes in.NAME.safetensors, one file per batch, and README.txt
    (your program)                      writes out.NAME.safetensors and, if it can, grad.NAME.safetensors
    sparc-ref check DIR                 judges

A folder cannot be asked again, so it holds every batch that a diagnosis asks in the usual cases; what it would have asked
beyond that is said in the report.  The folder is a stranger's: names, sizes, headers and shapes are checked before use.
"""

import hashlib
import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from parity.checker.calling.caller import Convention, Item, arrays_of
from parity.checker.calling.packing import visible
from parity.checker.diagnosis import variants
from parity.checker.diagnosis.again import KINDS, fresh
from parity.checker.diagnosis.asking import Box, simplest
from parity.checker.diagnosis.behaviour import behaviour
from parity.checker.diagnosis.deviations import Found
from parity.checker.diagnosis.diagnose import Diagnosis, diagnose
from parity.checker.diagnosis.numbers import MANY, find_epsilon, find_threshold, kept, spread
from parity.checker.page.sheet import Report, versions
from parity.checker.probes import HELD_OUT, PROBES, Answer, Probe, knife_probe
from parity.vectors.safe_read import parse_json, parse_safetensors, read_bytes

LIMIT = 1 << 22                                           # bytes of a file
LOSSES = ("fine", "global", "total")
LEAVES = ("v", "t", "theta", "v_bar", "t_bar")
CONSTANTS = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 1 / 49, 1 / 196, 1 / 256, 1e-3)
README = """\
Batches of sparc-ref check, one file each. For every in.NAME.safetensors:
1. read v (B,P,D), t (B,L,D), mask (B,L) of uint8 with 1 = real token, theta = log(1/tau), v_bar and t_bar (B,D), float64
2. compute your loss and write out.NAME.safetensors: "fine" (eq. 6), "global" (eq. 1) or "total", one number each, F64 or F32
3. and, if you have gradients, grad.NAME.safetensors with "v", "t", "theta", "v_bar", "t_bar" in the shapes of the inputs
   ("fine.v", "global.v_bar" ... where there are several losses)
4. a batch on which your program fails gets no out file
5. then: sparc-ref check THIS_FOLDER
A safetensors file: 8 bytes little-endian n, n bytes of JSON {"v": {"dtype": "F64", "shape": [..], "data_offsets": [a,b]}}, data
"""


class Recorder:
    """Notes which probes are asked of a known variant."""

    def __init__(self, deviations=()):
        self.deviations, self.probes = deviations, {}
        self.convention = Convention("reference", "folder", (), losses={"fine": ((), ()), "global": ((), ())})
        self.worker = None

    def __call__(self, probe: Probe, trace: bool = False) -> Answer:
        self.probes[key_of(probe)] = probe
        result = variants.compute(probe, self.deviations)
        return Answer(dict(result.losses), {name: dict(g) for name, g in result.grads.items()})


def key_of(probe: Probe) -> str:
    digest = hashlib.sha256()
    for name, x in arrays_of(probe).items():
        digest.update(f"{name}{x.shape}".encode() + np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()


def usual_probes() -> dict[str, Probe]:
    """Every batch that a diagnosis asks of the paper's loss, of constant thresholds and of usual epsilons.  Key -> probe."""
    again = [p for kind in (*KINDS, "zero", "empty", "one token") for p in fresh(kind)]  # what is said is measured on these
    again += [knife_probe(1 / 8, lengthen=x, patches=8) for x in (1.0, 2.0**40)]
    found: dict[str, Probe] = {key_of(p): p for p in (*PROBES.values(), *HELD_OUT.values(), *again)}
    for deviations in ((), (Found("threshold.absent"),), (Found("logits.padding_not_masked"), Found("reduction.token"))):
        record = Recorder(deviations)
        diagnose(record)
        behaviour(record, Diagnosis("eq6"))
        found |= record.probes
    for sigma in CONSTANTS:
        record = Recorder((Found("threshold.constant", sigma),))
        find_threshold(Box(record), "fine")
        found |= record.probes
    for sigma in middles():                               # one step towards any other constant
        record = Recorder((Found("threshold.constant", sigma),))
        find_threshold(Box(record), "fine")
        found |= {key: p for key, p in record.probes.items() if p.name == f"threshold_{MANY}_0"}
    for eps in (1e-6, 1e-8, 1e-10, 1e-12):
        record = Recorder((Found("minmax.epsilon", eps),))
        find_epsilon(Box(record), "fine", 1 / 64)
        found |= record.probes
    return found


def middles() -> list[float]:
    """One threshold in each interval that the first batch of P = 64 tells apart."""
    edges = [0.0, *spread(MANY - 2, 1 / MANY), 1.0]
    return [(a + b) / 2 for a, b in itertools.pairwise(edges[1:])]


def export(folder: Path) -> str:
    """Write the batches.      -> what to tell the user.  Raises ValueError for a folder that holds something else."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(not p.name.startswith(("in.", "README")) for p in folder.iterdir())):
        raise ValueError(f"{folder}: expected an empty or a new folder")
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    names: set[str] = set()
    probes = usual_probes()
    for key, probe in probes.items():
        name = plain_name(probe.name, key, names)
        arrays = arrays_of(probe)
        arrays["mask"] = arrays["mask"].astype(np.uint8)
        (folder / f"in.{name}.safetensors").write_bytes(save({k: np.ascontiguousarray(x).reshape(x.shape) for k,
                                                              x in arrays.items()}))
    (folder / "README.txt").write_text(README)
    return f"{len(probes)} batches in {folder}; README.txt there says in five lines what to do with them"


def plain_name(name: str, key: str, taken: set[str]) -> str:
    base = "".join(c if c.isalnum() else "_" for c in name.lower())
    base = base if base not in taken else f"{base}_{key[:8]}"
    taken.add(base)
    return base


class Table:
    """Answers out of a folder; `missing` counts what was asked and is not there."""

    def __init__(self, folder: Path):
        self.folder, self.worker = folder, None
        self.missing: dict[str, Probe] = {}
        self.asked: dict[str, Probe] = {}
        self.sigma: float | None = None
        self.answers, self.names = read_folder(folder)
        kinds = {loss for a in self.answers.values() for loss in a.losses}
        leaves = sorted({leaf for a in self.answers.values() for g in a.grads.values() for leaf in g}, key=LEAVES.index)
        self.known = self.answers
        items = (
            Item("out.*", ", ".join(k for k in LOSSES if k in kinds), "given", "their names"),
            Item("grad.*", given_gradients(leaves, kinds), "given", "their names"),
        )
        self.convention = Convention(folder.name, "folder", (), losses={k: ((k,), (1.0,)) for k in LOSSES if k in kinds},
                                     items=items)

    @property
    def calls(self) -> int:
        return len(self.asked)

    def __call__(self, probe: Probe, trace: bool = False) -> Answer:
        key = key_of(probe)
        if key not in self.answers:
            if self.sigma is not None and probe.name.startswith("threshold"):
                return supposed(probe, self.sigma)
            self.missing[key] = probe
            return Answer(error="the folder has no such batch")
        self.asked[key] = probe
        return self.answers[key]


def given_gradients(leaves: list[str], kinds: set[str]) -> str:
    """Which gradients are there; of those that are not, nothing is said."""
    if not leaves:
        return "none: values alone are compared"
    wanted = ["v", "t", "theta"] if kinds & {"fine", "total"} else ["v_bar", "t_bar", "theta"]
    missing = [leaf for leaf in wanted if leaf not in leaves]
    return ", ".join(leaves) + (f"; not given, and not compared: {', '.join(missing)}" if missing else "")


def read_folder(folder: Path) -> tuple[dict[str, Answer], dict[str, str]]:
    """Answers by the content of their batch.  Raises ValueError that names the file and what is wrong with it."""
    names = sorted(p.name for p in folder.iterdir())
    inputs = [n for n in names if n.startswith("in.") and n.endswith(".safetensors")]
    if not inputs:
        raise ValueError(f"{folder}: no in.*.safetensors there; sparc-ref check --export {folder} writes them")
    if len(inputs) > 2000:
        raise ValueError(f"{folder}: {len(inputs)} batches, where at most 2000 are read")
    answers, called = {}, {}
    for file in inputs:
        name = file.removeprefix("in.").removesuffix(".safetensors")
        arrays = read_arrays(folder, file, inputs_expected)
        probe = Probe(name, arrays["v"], arrays["t"], arrays["mask"] != 0, float(arrays["theta"].reshape(())),
                      arrays["v_bar"], arrays["t_bar"])
        key = key_of(probe)
        called[key] = name
        answers[key] = read_answer(folder, name, arrays, set(names))
    silent = [called[key] for key, a in answers.items() if a.error]
    if len(silent) == len(answers):
        raise ValueError(f"{folder}: no out.*.safetensors there: run your program on the in.* files first")
    if len(silent) > len(answers) / 3:
        raise ValueError(f"{folder}: {len(silent)} of {len(answers)} batches have no answer, out.{silent[0]}.safetensors for "
                         "one: let your program go through all of the in.* files")
    return answers, called


def read_answer(folder, name, arrays, names) -> Answer:
    if f"out.{name}.safetensors" not in names:
        return Answer(error=f"out.{name}.safetensors is missing")
    out = read_arrays(folder, f"out.{name}.safetensors", lambda file, header: only(file, header, {k: [()] for k in LOSSES}))
    losses = {k: float(x.reshape(())) for k, x in out.items()}
    grads: dict[str, dict[str, np.ndarray]] = {}
    dtypes = {x.dtype for x in out.values()}
    if f"grad.{name}.safetensors" in names:
        shapes = {leaf: arrays[leaf].shape for leaf in LEAVES}
        allowed = {f"{loss}.{leaf}": [shape] for loss in losses for leaf, shape in shapes.items()}
        if len(losses) == 1:
            allowed |= {leaf: [shape] for leaf, shape in shapes.items()}
        given = read_arrays(folder, f"grad.{name}.safetensors", lambda file, header: only(file, header, allowed))
        for key, x in given.items():
            loss, dot, leaf = key.rpartition(".")
            grads.setdefault(loss if dot else next(iter(losses)), {})[leaf] = x.astype(np.float64).reshape(shapes[leaf])
            dtypes.add(x.dtype)
    return Answer(losses, grads, dtype="float32" if np.dtype("float32") in dtypes else "float64")


def inputs_expected(file: str, header: dict[str, Any]) -> None:
    """Refuse a batch whose names or shapes do not belong together."""
    if set(header) != {*LEAVES, "mask"}:
        raise ValueError(f"{file}: expected v, t, mask, theta, v_bar, t_bar; got {visible(', '.join(sorted(header))[:100])}")
    shapes = {name: tuple(x["shape"]) for name, x in header.items()}
    if len(shapes["v"]) != 3 or len(shapes["t"]) != 3:
        raise ValueError(f"{file}: expected v (B,P,D) and t (B,L,D), got {shapes['v']} and {shapes['t']}")
    (batch, _, width), (other, tokens, depth) = shapes["v"], shapes["t"]
    wanted = {"v": shapes["v"], "t": (batch, tokens, width), "mask": (batch, tokens), "v_bar": (batch, width),
              "t_bar": (batch, width),
              "theta": ()}
    if (other, depth) != (batch, width) or any(shapes[k] != wanted[k] for k in wanted):
        raise ValueError(f"{file}: the shapes do not belong together: {shapes}")


def only(file: str, header: dict[str, Any], allowed: dict[str, list]) -> None:
    """Refuse names that are not expected, and shapes other than the inputs'."""
    if not header:
        raise ValueError(f"{file}: it holds nothing; expected {', '.join(list(allowed)[:5])}")
    for name, entry in header.items():
        if name not in allowed:
            raise ValueError(f"{file}: {name[:60]!r} is none of {', '.join(allowed)}")
        shape = tuple(entry["shape"])
        wanted = allowed[name][0]
        if math.prod(shape) != math.prod(wanted) or (shape != wanted and math.prod(wanted) != 1):
            raise ValueError(f"{file}: {name}: expected shape {wanted}, got {shape}")


def read_arrays(folder: Path, file: str, expect: Callable[[str, dict], None], limit: int = LIMIT,
                dtypes: tuple[str, ...] = ("F64", "F32", "U8", "BOOL")) -> dict[str, np.ndarray]:
    """The tensors of one file, its header checked before anything is believed."""
    content = read_bytes(folder, file, limit)
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > len(content) - 8:
        raise ValueError(f"{file}: cut short: {len(content)} bytes, and its header claims {size}")
    header = parse_json(content[8 : 8 + size], file)
    if not isinstance(header, dict):
        raise ValueError(f"{file}: expected safetensors")
    header.pop("__metadata__", None)
    for name, entry in header.items():
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 1 << 20 for n in shape):
            raise ValueError(f"{file}: {name[:60]!r}: expected dtype, shape and data_offsets")
        if entry.get("dtype") not in dtypes:
            raise ValueError(f"{file}: {name[:60]!r}: expected F64 or F32, got {entry.get('dtype')!r}")
    expect(file, header)
    as_bool = {name: {**entry, "dtype": "BOOL"} if entry["dtype"] == "U8" else entry for name, entry in header.items()}
    plain = _json(as_bool)
    return parse_safetensors(len(plain).to_bytes(8, "little") + plain + content[8 + size :], file, as_bool)


def _json(header) -> bytes:
    import json

    return json.dumps(header).encode()


def judge(folder: Path, edges: bool = False):
    """The report on a folder of answers.  Raises ValueError where the folder itself is at fault."""
    start = time.monotonic()
    ask = Table(folder)
    if ask(PROBES["padded"]).error:
        raise ValueError(
            f"{folder}: the batch 'padded' of this version of sparc-ref is not there or has no answer: export again with "
            f"sparc-ref check --export NEW_FOLDER"
        )
    diagnosis, notes = diagnose(ask, edges), []
    if diagnosis.verdict == "unexplained" and (seen := between(ask)):
        low, high = seen
        for sigma in dict.fromkeys((simplest(low, high), (low + high) / 2, 0.9 * low + 0.1 * high, 0.1 * low + 0.9 * high)):
            ask.sigma = float(sigma)                      # one value of the interval, to see whether it explains the rest
            if (again := diagnose(ask, edges)).verdict != "unexplained":
                diagnosis = again
                notes.append(f"sigma lies between {low:.6g} and {high:.6g}; a folder cannot be asked again to narrow it down")
                break
    if ask.missing and not notes and diagnosis.verdict == "unexplained":
        notes.append(f"a folder cannot be asked again: {len(ask.missing)} batches that it does not hold would have told more")
    failed = sorted(ask.names[key] for key, a in ask.answers.items() if a.error)
    if failed:
        notes.append(f"no answer to {len(failed)} of {len(ask.answers)} batches: {', '.join(failed[:5])}"
                     + ", ..." * (len(failed) > 5))
    found = behaviour(ask, diagnosis)
    return Report(str(folder), diagnosis, ask.convention, found, seconds=time.monotonic() - start, calls=len(ask.answers),
                  runs_in="folder", notes=tuple(notes), versions=versions())


def supposed(probe: Probe, sigma: float) -> Answer:
    """What a threshold of `sigma` would show: no gradient at patches below it."""
    found = variants.compute(probe, (Found("threshold.constant", sigma),))
    return Answer(dict(found.losses), {name: dict(g) for name, g in found.grads.items()})


def between(ask) -> tuple[float, float] | None:
    """The interval in which the batches that are there put a constant threshold."""
    box, loss = Box(ask), next(iter(ask.convention.losses))
    seen = find_threshold(box, loss).seen
    low, high = max((a for a, _ in seen.values()), default=0.0), min((b for _, b in seen.values()), default=1.0)
    if not 0 < low < high < 1:
        return None
    start, end = seen[MANY]
    wanted = np.linspace(start, end, MANY)[1:-1]          # the one step further that the folder holds
    passed = kept(box, loss, f"threshold_{MANY}_0", wanted)
    if passed is not None and passed.any() and not passed.all() and passed[passed.argmax() :].all():
        edge = int(passed.argmax())
        low, high = max(low, wanted[edge - 1]), min(high, wanted[edge])
    return (float(low), float(high)) if low < high else None
