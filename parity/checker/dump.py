"""What gives these numbers?  One batch of anybody's training run, with its loss, against every known reading and deviation.

    sparc-ref check batch.npz           (or batch.safetensors)

The file holds  v (B,P,D) patches, t (B,L,D) tokens, mask (B,L) 1 = real token (none: all are), one of theta = log(1/tau),
scale = 1/tau, tau, and loss; and what is known of its gradients: grad_v, grad_t, and grad_theta, grad_scale or grad_tau.
float32 or float64.  For whoever cannot hand over code: no line of it is run here, so nothing is said beyond this batch.

A file is a stranger's: sizes, names, dtypes and shapes are checked before its numbers are used; nothing in it is unpickled.
"""

import io
import itertools
import json
import math
import time
import tokenize
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from parity.checker.calling.packing import visible
from parity.checker.diagnosis import variants
from parity.checker.diagnosis.asking import PRECISION, gradient_off, loss_off
from parity.checker.diagnosis.deviations import DEVIATIONS, Found, words
from parity.checker.diagnosis.switches import WAYS, Variant, found_in, variant_of
from parity.checker.exchange import read_arrays
from parity.checker.probes import Probe
from parity.vectors.safe_read import read_bytes

SUFFIXES = (".npz", ".safetensors")
FILE_LIMIT = 1 << 30                                      # bytes of a file, and of its arrays
MOST = 1 << 26                                            # entries of the similarities, B L P
PAIRS_SECONDS = 60.0                                      # for pairs of deviations
SIGMAS = (0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05, 0.02, 0.01, 1 / 16, 1 / 49, 1 / 64, 1 / 196, 1 / 256, 1 / 576, 1e-3)
TAUS = (1.0, 0.5, 0.2, 0.1, 0.07, 0.05, 0.02, 0.01)
TEMPERATURES = ("theta", "scale", "tau")
GRADIENTS = tuple(f"grad_{name}" for name in ("v", "t", *TEMPERATURES))
NAMES = ("v", "t", "mask", *TEMPERATURES, "loss", *GRADIENTS)
KINDS = {"eq6": "eq. 6", "listing1": "Listing 1", "explained": "not eq. 6, but known", "unexplained": "nothing known"}


@dataclass(frozen=True)
class Match:
    """A reading of the paper, or deviations from it, and how far it is from the numbers: relative, None without gradients."""

    found: tuple[Found, ...]
    loss: float
    gradient: float | None
    how: str = ""                                         # how the file was read, where that is not as it stands

    @property
    def name(self) -> str:
        ids = [d.id for d in self.found]
        each = [f"{d} ({d.way})" if d.way and d.value is None else str(d) for d in self.found]
        named = "Listing 1" if ids == ["reduction.token"] else ", ".join(each) or "eq. 6"
        return f"{named}, {self.how}" if self.how else named

    @property
    def off(self) -> float:
        """The larger of both, to order by."""
        return max(self.loss, self.gradient or 0.0)


@dataclass(frozen=True)
class DumpReport:
    """matches: what gives the numbers, simplest first; nearest: what comes closest, where nothing does.

    tried: how many readings, single deviations and pairs were computed.  tolerance: of loss and gradient, for their precision.
    """

    target: str
    holds: str
    matches: tuple[Match, ...]
    nearest: tuple[Match, ...]
    tried: dict[str, int]
    tolerance: tuple[float, float]
    met: frozenset[str]                                   # of deviations.CONDITIONS
    notes: tuple[str, ...] = ()
    accept: tuple[str, ...] = ()
    seconds: float = 0.0
    gradients: tuple[str, ...] = field(default=())

    @property
    def verdict(self) -> str:
        """"eq6" | "listing1" | "explained" | "unexplained", on this batch."""
        names = [m.name for m in self.matches]
        if not names:
            return "unexplained"
        return "eq6" if "eq. 6" in names else "listing1" if "Listing 1" in names else "explained"

    @property
    def exit_code(self) -> int:
        """0: eq. 6 gives these numbers, or what --accept names; else 1."""
        return 0 if self.verdict == "eq6" or self.verdict in self.accept else 1

    @property
    def summary(self) -> str:
        first = f": {self.matches[0].name}" if self.verdict == "explained" else ""
        return f"SPARC, on this batch: {KINDS[self.verdict]}{first}"

    def to_dict(self) -> dict[str, Any]:
        def plain(m):
            numbers = {"loss": finite(m.loss), "gradient": finite(m.gradient)}
            return {"name": m.name, "deviations": [str(d) for d in m.found], **numbers, "words": says(m)}

        return {
            "format": "sparc-dump", "version": 1, "target": self.target, "verdict": self.verdict, "summary": self.summary,
            "exit_code": self.exit_code, "holds": self.holds, "gradients": list(self.gradients),
            "matches": [plain(m) for m in self.matches], "nearest": [plain(m) for m in self.nearest], "tried": self.tried,
            "tolerance": list(self.tolerance), "conditions": sorted(self.met), "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def __str__(self) -> str:
        lines = ["", f"  ON THIS BATCH: {KINDS[self.verdict].upper()}", f"  {self.holds}", ""]
        if self.matches:
            first, *rest = self.matches
            near = f"loss to {self.tolerance[0]:.0e}, gradients to {self.tolerance[1]:.0e}, relative"
            lines += [f"  What gives these numbers ({near})",
                      f"    {first.name:44} {offs(first)}"]
            lines += [f"      {line}" for line in says(first)]
            if rest:
                lines += ["", f"  Cannot be told apart from it on this batch: {len(rest)}"]
                lines += [f"    {m.name:44} {why_hidden(m, self.met)}".rstrip() for m in rest]
        else:
            lines += ["  Nothing that is known gives these numbers. Nearest"]
            lines += [f"    {m.name:44} {offs(m)}" for m in self.nearest]
        if self.notes:
            lines += ["", "  Also", *(f"    {note}" for note in self.notes)]
        tried = ", ".join(f"{n:,} {what}" for what, n in self.tried.items() if n)
        return "\n".join([*lines, "", f"  computed here: {tried}; {self.seconds:.1f} s"])


def judge(path: Path, accept: tuple[str, ...] = ()) -> DumpReport:
    """The report on one file.  Raises ValueError that names the file and what is wrong with it."""
    start = time.monotonic()
    arrays = read(path)
    probe, loss, grads, read_as = batch_of(path, arrays)
    exact = {np.asarray(x).dtype for name, x in arrays.items() if name != "mask" and np.asarray(x).dtype.kind == "f"}
    tolerance = PRECISION["float64" if exact == {np.dtype(np.float64)} else "float32"]
    tried = {"readings": 0, "single deviations": 0, "pairs": 0}
    notes = []
    part: dict[tuple, dict[str, float]] = {}              # gradient by gradient, where the loss is right

    def compared(fine: Variant, found, probe=probe, how="") -> Match:
        result = variants.evaluate(probe, fine, grad=bool(grads))
        known = {k: x for k, x in result.grads.get("fine", {}).items() if k in grads}
        if loss_off(loss, result.losses["fine"]) < tolerance[0]:
            part[tuple(found), how] = {k: gradient_off({k: grads[k]}, {k: known[k]}) or 0.0 for k in grads}
        return Match(tuple(found), loss_off(loss, result.losses["fine"]), gradient_off(grads, known) if grads else None, how)

    def fits(m: Match) -> bool:
        return m.loss < tolerance[0] and (m.gradient is None or m.gradient < tolerance[1])

    singles = known_singles(probe)
    clock = time.monotonic()
    every = [compared(fine, found) for fine, found in singles.items()]
    tried["readings"], tried["single deviations"] = 2, len(singles) - 2
    matches = [m for m in every if fits(m)]
    if not matches:
        for how, other in other_readings(probe, read_as, "mask" in arrays):
            for found in ((), (Found("reduction.token"),)):
                every.append(compared(variant_of(found)[0], found, other, how))
                tried["readings"] += 1
        matches = [m for m in every if fits(m)]
    if not matches:
        some = list(known_pairs(singles))
        each = (time.monotonic() - clock) / len(every) * (0.4 if grads else 1.0)
        if each * len(some) > PAIRS_SECONDS:
            notes.append(f"pairs of deviations were not tried: about {each * len(some):.0f} s on a batch of this size, more "
                         f"than {PAIRS_SECONDS:.0f}; a smaller batch allows it")
            some = []
        tried["pairs"] = len(some)
        for fine, found in some:
            off = loss_off(loss, variants.evaluate(probe, fine, grad=False).losses["fine"])
            m = compared(fine, found) if off < tolerance[0] and grads else Match(tuple(found), off, None)
            every.append(m)
        matches = [m for m in every if fits(m) and (m.gradient is not None or not grads)]
    if not matches and ((), "") in part:
        each_off = ", ".join(f"that of {k} is off by {x:.0e}" if x > tolerance[1] else f"that of {k} is right"
                             for k, x in part[(), ""].items())
        notes.append(f"the loss is eq. 6's, its gradients are not: {each_off}")
    if not grads:
        notes.append("the file holds no gradients: what changes them alone, or fits the loss by chance, is not told apart")
    order = {m: i for i, m in enumerate(every)}
    matches.sort(key=lambda m: (len(m.found) > 0, m.name != "Listing 1", len(m.found), order[m]))
    nearest = sorted((m for m in every if math.isfinite(m.off) and (m.gradient is not None or not grads)), key=lambda m: m.off)
    return DumpReport(visible(path), described(probe, arrays, loss, grads, exact), tuple(matches), tuple(nearest[:5]), tried,
                      tolerance, probe.holds, tuple(notes), accept, time.monotonic() - start, tuple(sorted(grads)))


# ------------------------------------------------------------------------------------------------------------------- variants


def known_singles(probe: Probe) -> dict[Variant, tuple[Found, ...]]:
    """The paper, and every deviation by itself in every way in which it is written, with the usual values."""
    batch, patches, _ = probe.v.shape
    ways = [replace(Variant(), **changes) for some in WAYS.values() for changes in some.values()]
    ways += [Variant(sigma=float(s)) for s in dict.fromkeys((*SIGMAS, 1 / patches)) if s != 1 / patches]
    ways += [Variant(tau=tau) for tau in TAUS if abs(math.log(tau) + probe.theta) > 1e-6]
    ways += [Variant(direction=way) for way in ("vt", "tv")]
    ways += [Variant(factor=float(f)) for f in dict.fromkeys((0.5, 2, batch, 1 / batch)) if f != 1]
    ways += [Variant(reduction="mean_all", padded_rows=0.0)]
    return {Variant(): ()} | {fine: found_in(fine) for fine in dict.fromkeys(ways) if fine != Variant()}


def known_pairs(singles: dict[Variant, tuple[Found, ...]]):
    """Settings that hold two deviations, both of which show in the setting."""
    plain = Variant()
    changed = {fine: {name: x for name, x in vars(fine).items() if x != getattr(plain, name)} for fine in singles}
    for (one, a), (two, b) in itertools.combinations(changed.items(), 2):
        if a and b and not set(a) & set(b):
            fine = replace(plain, **a, **b)
            if len(found := found_in(fine)) >= 2 and fine not in (one, two):
                yield fine, found


def other_readings(probe: Probe, read_as: str, has_mask: bool):
    """The file, read otherwise: a mask the other way round, a temperature of another kind."""
    if has_mask and not probe.mask.all():
        yield "if the mask marks padding", replace(probe, mask=~probe.mask)
    x = {"theta": probe.theta, "scale": math.exp(probe.theta), "tau": math.exp(-probe.theta)}[read_as]
    if read_as != "theta":
        yield f"if {read_as} is log(1/tau)", replace(probe, theta=x)
        if x > 1:                                         # exp forgotten: the parameter itself is 1/tau
            yield f"if 1/tau is log({read_as})", replace(probe, theta=math.log(math.log(x)))
    if read_as != "scale" and x > 0:
        yield f"if {read_as} is 1/tau", replace(probe, theta=math.log(x))
    if read_as != "tau" and x > 0:
        yield f"if {read_as} is tau", replace(probe, theta=-math.log(x))


# -------------------------------------------------------------------------------------------------------------------- reading


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, by name.  Raises ValueError for anything that is not a plain, small enough file of known arrays."""
    if path.suffix == ".npz":
        return read_npz(path.name, read_bytes(path.parent, path.name, FILE_LIMIT))

    def expect(file, header):
        check_names(file, list(header))
        total(file, sum(math.prod(x["shape"]) for x in header.values()) * 8)

    return read_arrays(path.parent, path.name, expect, FILE_LIMIT, ("F64", "F32", "I64", "U8", "BOOL"))


def read_npz(file: str, content: bytes) -> dict[str, np.ndarray]:
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ValueError(f"{file}: expected an .npz file, as np.savez writes it: {visible(error)}") from None
    if len(members) > 64:
        raise ValueError(f"{file}: {len(members)} members, where at most {len(NAMES)} are known")
    total(file, sum(m.file_size for m in members))
    names = [m.filename.removesuffix(".npy") for m in members]
    if len(set(names)) < len(names):
        raise ValueError(f"{file}: a name stands twice: {visible(', '.join(names)[:100])}")
    check_names(file, names)
    found = {}
    for name, member in zip(names, members):
        try:
            with archive.open(member) as stream:
                body = stream.read(member.file_size + 1)
        except (zipfile.BadZipFile, RuntimeError, OSError, EOFError, NotImplementedError, ValueError, zlib.error) as error:
            raise ValueError(f"{file}: {name}: {visible(error)}") from None
        found[name] = read_npy(file, name, body)
    return found


def read_npy(file: str, name: str, body: bytes) -> np.ndarray:
    """One array; its header is believed only if the bytes that follow are exactly as many."""
    stream = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(stream)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if reader is None:
            raise ValueError(f"version {version} of the format")
        shape, fortran, dtype = reader(stream)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, OverflowError, tokenize.TokenError) as error:
        raise ValueError(f"{file}: {name}: not an array of NumPy: {visible(error)[:200]}") from None
    if dtype.hasobject or dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise ValueError(f"{file}: {name}: expected float32 or float64 (mask: bool or integers), got {visible(dtype)[:60]}")
    size = math.prod(shape) * dtype.itemsize
    if len(body) - stream.tell() != size:
        raise ValueError(f"{file}: {name}: {visible(shape)[:60]} of {dtype} needs {size} bytes, the file has "
                         f"{len(body) - stream.tell()}")
    return np.frombuffer(body, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")


def check_names(file: str, names: list[str]) -> None:
    for name in names:
        if name not in NAMES:
            raise ValueError(f"{file}: {visible(name[:60])!r} is none of {', '.join(NAMES)}")
    for name in ("v", "t", "loss"):
        if name not in names:
            raise ValueError(f"{file}: {name} is missing; expected v (B,P,D), t (B,L,D), mask (B,L), theta, scale or tau, loss")
    given = [name for name in TEMPERATURES if name in names]
    if len(given) != 1:
        raise ValueError(f"{file}: expected one of theta = log(1/tau), scale = 1/tau, tau; got {' and '.join(given) or 'none'}")


def total(file: str, size: int) -> None:
    if size > FILE_LIMIT:
        raise ValueError(f"{file}: its arrays take {size} bytes, where at most {FILE_LIMIT} are read")


def batch_of(path: Path, arrays: dict[str, np.ndarray]) -> tuple[Probe, float, dict[str, np.ndarray], str]:
    """-> the batch, its loss, gradients by leaf, and which temperature the file gives"""
    file = path.name
    v, t = arrays["v"], arrays["t"]
    if v.ndim != 3 or t.ndim != 3 or v.shape[0] != t.shape[0] or v.shape[2] != t.shape[2] or 0 in v.shape or 0 in t.shape:
        raise ValueError(f"{file}: expected v (B,P,D) and t (B,L,D) with the same B and D, got {v.shape} and {t.shape}")
    batch, patches, width = v.shape
    tokens = t.shape[1]
    if batch * patches * tokens > MOST:
        raise ValueError(f"{file}: B L P is {batch * patches * tokens}, where at most {MOST} is computed: save a smaller batch")
    mask = arrays.get("mask", np.ones((batch, tokens), bool))
    if mask.shape != (batch, tokens):
        raise ValueError(f"{file}: mask: expected (B,L) = {(batch, tokens)}, got {mask.shape}")
    if not np.isin(mask, (0, 1)).all():
        raise ValueError(f"{file}: mask: expected 1 for real tokens and 0 for padding, got other numbers too")
    shapes = {"v": v.shape, "t": t.shape}
    numbers: dict[str, np.ndarray] = {}
    for name, x in arrays.items():
        if name == "mask":
            continue
        if x.dtype not in (np.float32, np.float64):
            raise ValueError(f"{file}: {name}: expected float32 or float64, got {x.dtype}")
        wanted = shapes.get(name.removeprefix("grad_"), ())
        if x.shape != wanted and not (wanted == () and x.size == 1):
            raise ValueError(f"{file}: {name}: expected shape {wanted}, got {x.shape}")
        numbers[name] = x.astype(np.float64).reshape(wanted)
        if name in ("v", "t", *TEMPERATURES) and not np.isfinite(x).all():
            raise ValueError(f"{file}: {name} holds NaN or infinity: no loss of it is told from another")
    kind = next(name for name in TEMPERATURES if name in arrays)
    given = float(numbers[kind])
    if kind != "theta" and given <= 0:
        raise ValueError(f"{file}: {kind}: expected a positive number, got {given:g}")
    theta = given if kind == "theta" else math.log(given) * (1 if kind == "scale" else -1)
    if abs(theta) > 50:
        raise ValueError(f"{file}: {kind} = {given:g}, which makes 1/tau exp({theta:.3g}): expected tau between 1e-20 and 1e20")
    grads = {name: numbers[f"grad_{name}"] for name in ("v", "t") if f"grad_{name}" in numbers}
    slopes = {"theta": 1.0, "scale": math.exp(theta), "tau": -math.exp(-theta)}
    for name in TEMPERATURES:
        if f"grad_{name}" in numbers:
            grads["theta"] = numbers[f"grad_{name}"] * slopes[name]
    pooled = np.zeros((2, batch, width))
    return (Probe(visible(file), numbers["v"], numbers["t"], mask != 0, theta, pooled[0], pooled[1], flat=flat_rows(numbers)),
            float(numbers["loss"]), grads, kind)


def flat_rows(numbers) -> bool:
    """Whether some token is as similar to every patch."""
    s = numbers["t"] @ np.swapaxes(numbers["v"], 1, 2)
    return bool((np.ptp(s, -1) == 0).any())


# --------------------------------------------------------------------------------------------------------------------- words


def described(probe, arrays, loss, grads, exact) -> str:
    real, all_ = int(probe.mask.sum()), probe.mask.size
    padding = "no padding" if real == all_ else f"{all_ - real} of {all_} tokens are padding"
    kinds = " and ".join(sorted(map(str, exact)))
    given = f"gradients of {', '.join(sorted(grads))}" if grads else "no gradients"
    sizes = f"v {probe.v.shape}, t {probe.t.shape}"
    return f"{sizes}, {padding}, 1/tau {math.exp(probe.theta):.4g}, loss {loss:.6g}, {given}, {kinds}"


def says(m: Match) -> list[str]:
    """What each deviation is, in words."""
    return [f"{d}: {words(d)}" for d in m.found]


def offs(m: Match) -> str:
    gradient = "" if m.gradient is None else f", gradients by {m.gradient:.1e}"
    return f"loss off by {m.loss:.1e}{gradient}"


def why_hidden(m: Match, met: frozenset[str]) -> str:
    """Conditions of the survey that hide a deviation and that this batch fulfils."""
    if all(DEVIATIONS[d.id].harmless for d in m.found):
        return "(changes nothing anywhere)"
    hidden = [c for d in m.found for c in DEVIATIONS[d.id].hidden_by if c in met]
    return f"(hidden here: {', '.join(dict.fromkeys(hidden))})" if hidden else ""


def finite(x: float | None) -> float | None:
    return float(x) if x is not None and math.isfinite(x) else None
