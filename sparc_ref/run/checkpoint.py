"""Checkpoints: one directory per step, safetensors for arrays and JSON for everything else.

    step_00000100/
        checkpoint.json           step, configuration, data positions, generator states, and of every file its size and sha256
        parameters.safetensors    the flat dict of parameters
        moments.safetensors       AdamW's two moments: "m.<name>" and "v.<name>"
        tokenizer/                what the tokenizer's own save() wrote

A checkpoint is written to a hidden directory, flushed to disk and then renamed, so whatever has its final name is complete: a
process killed at any moment leaves the previous checkpoint as it was. Reading trusts nothing: sizes, hashes, names, shapes,
types and finiteness are checked before a number is used, and no path leaves the directory. Nothing is ever unpickled.
"""

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

FORMAT, VERSION = "sparc_ref.run.checkpoint", 1
INDEX, PARAMETERS, MOMENTS = "checkpoint.json", "parameters.safetensors", "moments.safetensors"
MAX_INDEX_BYTES = 64 << 20                                # a larger index is not ours
DTYPES = ("float32", "float64")
FILE_NAME = re.compile(r"(parameters|moments)\.safetensors|tokenizer/[A-Za-z0-9_][A-Za-z0-9_.-]*")
STEP_NAME = re.compile(r"step_(\d{8,})")
REQUIRED = {"format", "version", "step", "optimizer_step", "record", "tokenizer", "files", "tensors", "sha256"}


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """What load() returns. params and the moments m, v share their keys; record is the JSON the writer handed to save()."""
    path: Path
    step: int
    params: dict
    optimizer: dict                                       # {"step": int, "m": {...}, "v": {...}}
    record: dict
    tokenizer: str                                        # the tokenizer's hash
    tokenizer_dir: Path


def save(
    folder: str | os.PathLike, step: int, params: dict[str, np.ndarray], optimizer: dict, record: dict, tokenizer: Any
) -> Path:
    """Write folder/step_<step> so that it exists completely or not at all, and return its path.

    params, optimizer["m"], optimizer["v"]  flat dicts of NumPy arrays with the same keys and shapes
    record      JSON-able dict: whatever else a resumed run needs (configuration, data positions, counters)
    tokenizer   an object with save(directory) and hash
    Raises CheckpointError when that step exists already (checkpoints are never overwritten) or an array is not finite.
    """
    from safetensors.numpy import save as to_bytes

    folder = Path(folder)
    final = folder / f"step_{step:08d}"
    if final.exists():
        raise CheckpointError(f"{final} exists already and checkpoints are never overwritten: delete it or write elsewhere")
    moments = {f"{kind}.{name}": x for kind in "mv" for name, x in optimizer[kind].items()}
    sets = {PARAMETERS: as_arrays(params), MOMENTS: as_arrays(moments)}
    folder.mkdir(parents=True, exist_ok=True)
    clean(folder)
    partial = folder / f".partial-{os.getpid()}"
    (partial / "tokenizer").mkdir(parents=True)
    for name, arrays in sets.items():
        (partial / name).write_bytes(to_bytes(arrays))
    tokenizer.save(partial / "tokenizer")
    names = [*sets, *(f"tokenizer/{p.name}" for p in sorted((partial / "tokenizer").iterdir()))]
    index = {
        "format": FORMAT, "version": VERSION, "step": int(step), "optimizer_step": int(optimizer["step"]), "record": record,
        "tokenizer": tokenizer.hash,
        "files": {name: {"bytes": (partial / name).stat().st_size, "sha256": file_hash(partial / name)} for name in names},
        "tensors": {name: {key: describe(x) for key, x in arrays.items()} for name, arrays in sets.items()},
    }
    index["sha256"] = index_hash(index)
    (partial / INDEX).write_text(json.dumps(index, indent=1, allow_nan=False), encoding="utf-8")
    for name in [*names, INDEX, "tokenizer", "."]:
        flush(partial / name)
    os.replace(partial, final)
    flush(folder)
    return final


def load(path: str | os.PathLike) -> Checkpoint:
    """Read and check a checkpoint directory; a run directory or its checkpoints/ stands for the newest in it.   -> Checkpoint

    Raises CheckpointError with the reason and the remedy; never returns part of a checkpoint.
    """
    path = find(path)
    index = read_index(path)
    contents = {name: read_file(path, name, entry) for name, entry in index["files"].items()}
    params = read_tensors(path, PARAMETERS, contents, index)
    moments = read_tensors(path, MOMENTS, contents, index)
    wanted = {f"{kind}.{name}": describe(x) for kind in "mv" for name, x in params.items()}
    compare(path, "moments", {name: describe(x) for name, x in moments.items()}, wanted)
    optimizer = {"step": index["optimizer_step"],
                 "m": {name: moments["m." + name] for name in params}, "v": {name: moments["v." + name] for name in params}}
    return Checkpoint(path, index["step"], params, optimizer, index["record"], index["tokenizer"], path / "tokenizer")


def find(path: str | os.PathLike) -> Path:
    """The checkpoint that a path stands for: itself, or the newest of a run directory or of its checkpoints/."""
    path = Path(path)
    if (path / INDEX).exists():
        return path
    for folder in (path / "checkpoints", path):
        if found := steps(folder):
            return found[-1]
    if not path.exists():
        raise CheckpointError(f"{path}: no such directory; expected a checkpoint (step_...) or a run directory")
    if STEP_NAME.fullmatch(path.name):
        raise refuse(path, f"{INDEX} is missing")
    raise CheckpointError(f"{path}: holds no checkpoint; expected a directory with {INDEX}, or a run with checkpoints/step_...")


def steps(folder: str | os.PathLike) -> list[Path]:
    """Complete checkpoints of a folder, oldest first."""
    folder = Path(folder)
    named = [(int(m[1]), p) for p in (folder.iterdir() if folder.is_dir() else ()) if (m := STEP_NAME.fullmatch(p.name))]
    return [p for _, p in sorted(named)]


def prune(folder: str | os.PathLike, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints (at least one stays). Each loses its name first, so none is ever partial."""
    for path in steps(folder)[:-max(keep, 1)]:
        gone = path.with_name(".deleted-" + path.name)
        os.replace(path, gone)
        shutil.rmtree(gone)


def clean(folder: str | os.PathLike) -> None:
    """Remove what a killed process left unfinished."""
    for path in Path(folder).glob(".partial-*"):
        shutil.rmtree(path)
    for path in Path(folder).glob(".deleted-*"):
        shutil.rmtree(path)


def check_params(path: Path, params: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse parameters that do not fit a model.      shapes: name -> tuple, as model.parameter_shapes(config) gives"""
    wanted = {name: [params["theta"].dtype.name if "theta" in params else "", list(shape)] for name, shape in shapes.items()}
    compare(path, "the model of its configuration", {name: describe(x) for name, x in params.items()}, wanted)


def from_json(cls: type, values: Any, where: Any) -> Any:
    """A frozen dataclass from its JSON dict (lists become tuples); a CheckpointError lists unknown and missing names."""
    names = {f.name for f in fields(cls)}
    if not isinstance(values, dict) or set(values) != names:
        given = set(values) if isinstance(values, dict) else set()
        raise CheckpointError(f"{where}: written by another version of sparc_ref, use that one: {cls.__name__} "
                              f"lacks {sorted(names - given)} and does not know {sorted(given - names)}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


# ------------------------------------------------------------------------------------------------------- the parts


def as_arrays(arrays):
    out = {}
    for name, x in arrays.items():
        x = np.asarray(x, order="C")                      # safetensors writes views wrongly and says nothing
        if x.dtype.name not in DTYPES:
            raise CheckpointError(f"{name}: expected one of {DTYPES}, got {x.dtype}")
        if not np.isfinite(x).all():
            raise CheckpointError(f"{name} holds NaN or infinity: not written, the previous checkpoint stays")
        out[name] = x
    return out


def read_index(path):
    file = path / INDEX
    try:
        if file.is_symlink() or not file.is_file() or file.stat().st_size > MAX_INDEX_BYTES:
            raise refuse(path, f"{INDEX} is not a plain file of at most {MAX_INDEX_BYTES} bytes")
        index = json.loads(file.read_bytes().decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as e:
        raise refuse(path, f"{INDEX} is not valid JSON ({e.__class__.__name__}: truncated or damaged)") from e
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of sparc_ref ({INDEX} does not say format {FORMAT!r}); "
                              "use one that `sparc-ref train` wrote")
    if index.get("version") != VERSION:
        raise CheckpointError(f"{path}: checkpoint format version {index.get('version')!r}, this sparc_ref reads {VERSION}; "
                              "read it with the sparc_ref that wrote it")
    if set(index) != REQUIRED:
        raise refuse(path, f"{INDEX} lacks {sorted(REQUIRED - set(index))} or has unknown {sorted(set(index) - REQUIRED)}")
    if index["sha256"] != index_hash(index):
        raise refuse(path, f"{INDEX} was changed after it was written (its own sha256 differs)")
    files, tensors = index["files"], index["tensors"]
    sound = (isinstance(files, dict) and isinstance(tensors, dict) and set(tensors) == {PARAMETERS, MOMENTS} <= set(files)
             and all(isinstance(t, dict) for t in tensors.values()) and isinstance(index["record"], dict)
             and all(type(index[k]) is int and index[k] >= 0 for k in ("step", "optimizer_step"))
             and all(isinstance(e, dict) and set(e) == {"bytes", "sha256"} for e in files.values()))
    if not sound:
        raise refuse(path, f"{INDEX} does not have the expected structure")
    for name in files:
        if not FILE_NAME.fullmatch(name):
            raise refuse(path, f"{INDEX} names the file {name!r}, which no checkpoint has")
    return index


def read_file(path, name, entry):
    file = path / name
    if (path / "tokenizer").is_symlink() or file.is_symlink() or not file.is_file():
        raise refuse(path, f"{name} is missing or not a plain file")
    if (size := file.stat().st_size) != entry["bytes"]:
        raise refuse(path, f"{name} has {size} bytes where {entry['bytes']} were written (truncated or damaged)")
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise refuse(path, f"the sha256 of {name} differs from the one recorded (damaged or changed)")
    return content


def read_tensors(path, name, contents, index):
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    try:
        arrays = from_bytes(contents[name])
    except (SafetensorError, KeyError, ValueError) as e:
        raise refuse(path, f"{name} is not a readable safetensors file ({e})") from e
    compare(path, name, {key: describe(x) for key, x in arrays.items()}, index["tensors"][name])
    for key, x in arrays.items():
        if x.dtype.name not in DTYPES:
            raise refuse(path, f"{key} has dtype {x.dtype}; expected one of {DTYPES}")
        if not np.isfinite(x).all():
            raise refuse(path, f"{key} holds NaN or infinity")
    return {key: arrays[key] for key in index["tensors"][name]}


def compare(path, what, got, wanted):
    """Both: name -> [dtype, shape]."""
    if missing := sorted(set(wanted) - set(got)):
        raise refuse(path, f"lacks the tensors {listed(missing)} of {what}")
    if extra := sorted(set(got) - set(wanted)):
        raise refuse(path, f"holds the tensors {listed(extra)}, unknown to {what}")
    for name, have in got.items():
        if have != wanted[name]:
            raise refuse(path, f"{name}: expected dtype and shape {wanted[name]} ({what}), got {have}")


def refuse(path, reason):
    earlier = [p for p in steps(path.parent) if p.name < path.name] if STEP_NAME.fullmatch(path.name) else []
    fix = f"delete it to continue from {earlier[-1].name}" if earlier else "no earlier one is there: train anew"
    return CheckpointError(f"{path}: {reason}; {fix}")


def describe(x):
    return [x.dtype.name, list(x.shape)]


def listed(names, most=4):
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def index_hash(index):
    body = {k: v for k, v in index.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def file_hash(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def flush(path):
    """Force a file or directory to disk."""
    if os.name == "nt" and Path(path).is_dir():           # Windows cannot open a directory
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
