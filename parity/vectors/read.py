"""The reference vectors: what goes in, what comes out, how far an answer may be off.  Frozen; parity/README.md is the format.

    cases = vectors.load(level="losses")
    for case in cases.values():
        got = {"out.loss": ..., "grad.v": ...}            # yours, computed from case.tensors["in.v"], ...
        wrong = [d for d in vectors.compare(case, got, "float32") if not d.ok]

Needs NumPy and jsonschema.  `python -m parity vectors` regenerates them and compares.
"""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from parity.vectors import budgets, safe_read

HOME = Path(__file__).parent
FOLDER, SCHEMA, MANIFEST = HOME / "v1", HOME / "manifest.schema.json", "manifest.json"
# sha256 of FOLDER's manifest, which holds the sha256 of every case.  A writing changes it, and prints the new one.
DIGEST = "80aa5e60c8ed52aa34cdf248fcbf31bedab7cd2c107140437d1daf71742118b0"


@dataclass(frozen=True)
class Case:
    """One case.  Names of tensors: in.* inputs, ct.* upstream gradients, mid.* stages, out.* outputs, grad.* gradients."""

    id: str
    level: str
    function: str
    options: dict[str, Any]
    flags: tuple[str, ...]
    note: str
    accepts: tuple[str, ...]  # ids of cases whose answer is right here too
    input_dtype: str
    tensors: dict[str, np.ndarray]  # in.*, ct.* exact in float32; mid.*, out.*, grad.* float64; in forward order
    scale: dict[str, float]
    budget: dict[str, dict[str, float]]  # by name, then dtype; a dtype is absent where the reference leaves its range
    axes: dict[str, str]  # letters of each tensor's dimensions
    padding: dict[str, tuple[int, ...]]  # axes along which only real tokens (in.mask) are compared
    alternatives: tuple["Case", ...] = field(default=(), repr=False)  # those of `accepts`

    @property
    def dtypes(self) -> list[str]:
        """The dtypes in which this case can be judged: every output has a budget."""
        return [d for d in budgets.EPS if all(d in b for n, b in self.budget.items() if n.startswith("out."))]


@dataclass(frozen=True)
class Difference:
    """One tensor: its error, its budget, and whether it keeps it.  `case` is the id whose answer it was compared with."""

    name: str
    error: float
    budget: float
    ok: bool
    case: str = ""

    @property
    def proves(self) -> bool:
        """Whether keeping the budget says anything: with budgets.PROVES of the scale or more, zeros might keep it too."""
        return self.budget < budgets.PROVES

    def __str__(self):
        note = " <- beyond" if not self.ok else "" if self.proves else " (proves nothing)"
        return f"{self.name}: error {self.error:.3g}, budget {self.budget:.3g}{note}"


def load(folder: Path | str | None = None, level: str | None = None) -> dict[str, Case]:
    """The cases by id, of one level ("ops", "losses", "encoders", "model", "steps", "objectives") or of all.

    Raises ValueError, with the file and the reason, for a folder that is not exactly what its manifest says; for the vectors
    of this package also where the manifest is not the frozen one.  Another folder's manifest is all that vouches for it.
    """
    folder = Path(folder or FOLDER).resolve()
    manifest = read_manifest(folder)
    cases: dict[str, Case] = {}
    for entry in manifest["cases"]:
        if level is None or entry["level"] == level:
            alternatives = tuple(cases[i] for i in entry["accepts"])  # read_manifest: they stand before it, on its level
            cases[entry["id"]] = read_case(folder, entry, alternatives)
    if not cases:
        raise ValueError(f"{folder}: no case of level {level!r}")
    return cases


def read_manifest(folder: Path) -> dict:
    """The manifest, checked against DIGEST (in FOLDER), its schema, itself, and the names in the folder."""
    present = set(safe_read.list_folder(folder))
    content = safe_read.read_bytes(folder, MANIFEST, safe_read.MANIFEST_LIMIT)
    if vouched_for(folder) and safe_read.digest(content) != DIGEST:
        raise ValueError(f"{MANIFEST}: refused: its sha256 is {safe_read.digest(content)[:12]}..., that of the frozen one is "
                         f"{DIGEST[:12]}... (DIGEST in parity/vectors/read.py); restore the file as it was released")
    manifest = _valid_manifest(content)
    files = {entry["file"] for entry in manifest["cases"]}
    if missing := sorted(files - present):
        raise ValueError(f"{missing[0]}: the file is missing ({len(missing)} in all)")
    if extra := sorted(present - files - {MANIFEST}):
        raise ValueError(f"{extra[0]}: refused: no case names this file ({len(extra)} such in all)")
    return manifest


def vouched_for(folder: Path) -> bool:
    """Whether the code holds the digest of this folder's manifest."""
    return folder.resolve() == FOLDER.resolve()


@functools.lru_cache(maxsize=4)
def _valid_manifest(content):
    """Parse and check; what was checked once is not checked again."""
    import jsonschema

    manifest = safe_read.parse_json(content, MANIFEST)
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    wrong = next(validator.iter_errors(manifest), None)
    if wrong is not None:
        at = "/".join(str(x) for x in wrong.absolute_path)
        raise ValueError(f"{MANIFEST}: refused: {at or 'the whole'}: {wrong.message[:200]}")
    seen: dict[str, str] = {}
    for entry in manifest["cases"]:
        name = entry["id"]
        if name in seen:
            raise ValueError(f"{MANIFEST}: refused: the case {name} stands twice")
        if entry["file"] != f"{name}.safetensors":
            raise ValueError(f"{MANIFEST}: refused: {name}: expected the file {name}.safetensors, got {entry['file']}")
        for other in entry["accepts"]:
            if seen.get(other) != entry["level"]:
                raise ValueError(f"{MANIFEST}: refused: {name} accepts {other}, which is no earlier case of its level")
        if unknown := set(entry["flags"]) - manifest["flags"].keys():
            raise ValueError(f"{MANIFEST}: refused: {name}: flags without a meaning: {', '.join(sorted(unknown))}")
        for tensor, about in entry["tensors"].items():
            if len(about["axes"]) != len(about["shape"]):
                raise ValueError(f"{MANIFEST}: refused: {name}: {tensor}: axes {about['axes']!r}, shape {about['shape']}")
            if math.prod(about["shape"]) > safe_read.FILE_LIMIT:
                raise ValueError(f"{MANIFEST}: refused: {name}: {tensor}: shape {about['shape']} does not fit a file")
            mask = entry["tensors"].get("in.mask", {"shape": []})["shape"]
            if about.get("padding") and len(mask) != 2:
                raise ValueError(f"{MANIFEST}: refused: {name}: {tensor} has padding, the case has no mask (B,L)")
            for axis in about.get("padding", ()):
                if [about["shape"][0], *about["shape"][axis : axis + 1]] != mask:
                    reason = f"padding along axis {axis}, which is not the mask's"
                    raise ValueError(f"{MANIFEST}: refused: {name}: {tensor}: {reason}")
        seen[name] = entry["level"]
    return manifest


def read_case(folder: Path, entry: Mapping[str, Any], alternatives: tuple[Case, ...] = ()) -> Case:
    """One case: size first, then hash, then content."""
    content = safe_read.read_bytes(folder, entry["file"], safe_read.FILE_LIMIT)
    if len(content) != entry["bytes"]:
        raise ValueError(f"{entry['file']}: refused: {len(content)} bytes, the manifest says {entry['bytes']}")
    if safe_read.digest(content) != entry["sha256"]:
        raise ValueError(f"{entry['file']}: refused: its sha256 is not the manifest's; its content was changed")
    tensors = safe_read.parse_safetensors(content, entry["file"], entry["tensors"])
    about = entry["tensors"]
    return Case(
        **{name: entry[name] for name in ("id", "level", "function", "note", "input_dtype")},
        options=dict(entry["options"]), flags=tuple(entry["flags"]), accepts=tuple(entry["accepts"]), alternatives=alternatives,
        tensors={name: tensors[name] for name in about},
        scale={name: x["scale"] for name, x in about.items() if "scale" in x},
        budget={name: x["budget"] for name, x in about.items() if "budget" in x},
        axes={name: x["axes"] for name, x in about.items()},
        padding={name: tuple(x["padding"]) for name, x in about.items() if x.get("padding")},
    )  # fmt: skip


def compare(case: Case, got: Mapping[str, Any], dtype: str) -> list[Difference]:
    """Every tensor of an answer against the case, in forward order: stages, outputs, gradients.

    got: arrays by full name, of any kind.  mid.* may be left out; a missing out.* or grad.* has an infinite error.
    dtype: what was computed in ("float64", "float32", "float16", "bfloat16"): decides the budget.  Tensors without a budget
    in it are left out: there the reference itself leaves the dtype's range.
    An answer that keeps all budgets of a case named in `accepts` is right, and is reported against that case.
    Raises ValueError for a name that the case has not, another shape, or a dtype that the case cannot be judged in.
    """
    if dtype not in case.dtypes:
        raise ValueError(f"{case.id}: has no budgets in {dtype}, only in {', '.join(case.dtypes)}")
    if unknown := [name for name in got if name not in case.budget]:
        raise ValueError(f"{case.id}: no tensor {unknown[0]}; expected names among {', '.join(case.budget)}")
    own = _against(case, got, dtype)
    if not passes(own):
        for other in case.alternatives:
            differences = _against(other, got, dtype)
            if passes(differences):
                return differences
    return own


def passes(differences: list[Difference]) -> bool:
    """The passing condition: every output and every gradient keeps its budget, and one of these budgets proves something.

    Stages say where an answer goes wrong.
    """
    judged = [d for d in differences if not d.name.startswith("mid.")]
    return all(d.ok for d in judged) and any(d.proves for d in judged)


def _against(case, got, dtype):
    differences = []
    for name, budget in case.budget.items():
        if dtype not in budget:
            continue
        if name not in got:
            if not name.startswith("mid."):
                differences.append(Difference(name, math.inf, budget[dtype], False, case.id))
            continue
        want, mine = case.tensors[name], budgets.to_float64(got[name])
        if mine.shape != want.shape:
            raise ValueError(f"{case.id}: {name}: expected shape {want.shape}, got {mine.shape}")
        mine = zero_padding(mine, case.tensors.get("in.mask"), case.padding.get(name, ()))
        error = budgets.error(mine, want, case.scale[name])
        differences.append(Difference(name, error, budget[dtype], error <= budget[dtype], case.id))
    return differences


def zero_padding(x: np.ndarray, mask: np.ndarray | None, axes: Sequence[int]) -> np.ndarray:
    """Zeros where a token is padding, along each of `axes`.      mask (B,L), the batch being axis 0 of x"""
    if mask is None:
        return x
    for axis in axes:
        shape = [1] * x.ndim
        shape[0], shape[axis] = mask.shape
        x = np.where(mask.reshape(shape), x, np.zeros_like(x))
    return x
