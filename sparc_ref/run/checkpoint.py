"""Checkpoints: one directory per step, safetensors for arrays and JSON for everything else.

    step_00000100/
        checkpoint.json           step, configuration, data positions, generator states, and of every file its size and sha256
        parameters.safetensors    the flat dict of parameters
        moments.safetensors       AdamW's two moments: "m.<name>" and "v.<name>"
        tokenizer/                what the tokenizer's own save() wrote

A checkpoint is written to a hidden directory, flushed to disk and then renamed, so whatever has its final name is complete: a
process killed at any moment leaves the previous checkpoint as it was. Deleting takes its name first, and only what save() has
written. Reading trusts nothing: sizes, hashes, names, shapes, types and finiteness are checked before a number is used, and no
path leaves the directory. Nothing is ever unpickled.
"""

import hashlib
import json
import math
import os
import re
import typing
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from sparc_ref.run.files import flush, kind, put, writing

FORMAT, VERSION = "sparc_ref.run.checkpoint", 1
INDEX, PARAMETERS, MOMENTS = "checkpoint.json", "parameters.safetensors", "moments.safetensors"
MAX_INDEX_BYTES = 64 << 20                                # a larger index, or tokenizer file, is not ours
DTYPES = ("float32", "float64")
FILE_NAME = re.compile(r"(parameters|moments)\.safetensors|tokenizer/[A-Za-z0-9_][A-Za-z0-9_.-]*")
STEP_NAME = re.compile(r"step_(\d{8,})")
OURS = re.compile(r"step_\d{8,}|\.partial-\d+|\.deleted-step_\d{8,}")
ITEM_BYTES = {"float32": 4, "float64": 8}
KNOWN = {INDEX, PARAMETERS, MOMENTS,
         *(f"tokenizer/tokenizer.{kind}{part}" for kind in ("json", "model") for part in ("", ".part"))}
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
    Raises CheckpointError when that step exists already (checkpoints are never overwritten) or an array is not finite, and
    WriteFailed (an OSError) that names the file where the disk refuses; either way nothing of it stays.
    """
    from safetensors.numpy import save as to_bytes

    folder = Path(folder)
    final = folder / f"step_{step:08d}"
    if final.exists():
        raise CheckpointError(f"{final} exists already and checkpoints are never overwritten: delete it or write elsewhere")
    moments = {f"{kind}.{name}": x for kind in "mv" for name, x in optimizer[kind].items()}
    sets = {PARAMETERS: as_arrays(params), MOMENTS: as_arrays(moments)}
    partial = folder / f".partial-{os.getpid()}"
    with writing(partial):
        folder.mkdir(exist_ok=True)
        clean(folder)
        try:
            partial.mkdir()
            (partial / "tokenizer").mkdir()
            for name, arrays in sets.items():
                with writing(partial / name):
                    put(partial / name, to_bytes(arrays))
            with writing(partial / "tokenizer"):
                tokenizer.save(partial / "tokenizer")
            names = [*sets, *(f"tokenizer/{p.name}" for p in sorted((partial / "tokenizer").iterdir()))]
            index = {
                "format": FORMAT, "version": VERSION, "step": int(step), "optimizer_step": int(optimizer["step"]),
                "record": record, "tokenizer": tokenizer.hash,
                "files": {n: {"bytes": (partial / n).stat().st_size, "sha256": file_hash(partial / n)} for n in names},
                "tensors": {name: {key: describe(x) for key, x in arrays.items()} for name, arrays in sets.items()},
            }
            index["sha256"] = index_hash(index)
            with writing(partial / INDEX):
                put(partial / INDEX, json.dumps(index, indent=1, allow_nan=False).encode())
            for name in [*names, INDEX, "tokenizer", "."]:
                with writing(partial / name):
                    flush(partial / name)
            os.replace(partial, final)
        except BaseException:
            with suppress(OSError):
                remove(partial)
            raise
        with writing(final):
            flush(folder)
    return final


def load(path: str | os.PathLike, check: Callable[[Path, dict], Any] | None = None) -> Checkpoint:
    """Read and check a checkpoint directory; a run directory or its checkpoints/ stands for the newest in it.   -> Checkpoint

    check(path, index) is called before any array is read: what it raises, and sizes that do not fit, cost no memory.
    Raises CheckpointError with the reason and the remedy; never returns part of a checkpoint.
    """
    return newest(path, lambda found: read_checkpoint(found, check))


def newest(path: str | os.PathLike, read: Callable[[Path], Any]) -> Any:
    """read(find(path)); once more where the run that writes there deleted what was found meanwhile."""
    for _ in range(100):
        found = find(path)
        try:
            return read(found)
        except (ValueError, OSError) as error:
            if (found / INDEX).exists():
                if isinstance(error, OSError):
                    raise refuse(found, f"cannot be read ({error.filename or found}: {error.strerror})") from error
                raise
            if found == Path(path) or kind(found) != "nothing":
                raise
    raise CheckpointError(f"{path}: checkpoints come and go faster than they can be read; stop the run that writes them")


def read_checkpoint(path: Path, check: Callable[[Path, dict], Any] | None = None) -> Checkpoint:
    """A checkpoint's own directory."""
    index = read_index(path)
    check_sizes(path, index)
    if check:
        check(path, index)
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
    runs = [str(p.parent) for p in (*sorted(path.glob("*/checkpoints")), *sorted(path.glob("*/*/checkpoints"))) if steps(p)]
    held = f"; the runs in it: {listed(runs)}" if runs else ""
    raise CheckpointError(f"{path}: holds no checkpoint; expected a directory with {INDEX}, or a run with checkpoints/step_..."
                          + held)


def steps(folder: str | os.PathLike) -> list[Path]:
    """Complete checkpoints of a folder, oldest first."""
    folder = Path(folder)
    named = [(int(m[1]), p) for p in (folder.iterdir() if folder.is_dir() else ()) if (m := STEP_NAME.fullmatch(p.name))]
    return [p for _, p in sorted(named)]


def prune(folder: str | os.PathLike, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints (at least one stays), and none that holds files of others.

    Each loses its name first, so none is ever partial.
    """
    with writing(Path(folder)):
        for path in steps(folder)[:-max(keep, 1)]:
            if not contents(path)[1]:
                remove(path)


def clean(folder: str | os.PathLike) -> None:
    """Remove what a killed process left unfinished."""
    for path in [*Path(folder).glob(".partial-*"), *Path(folder).glob(".deleted-*")]:
        if OURS.fullmatch(path.name) and kind(path) == "folder":
            remove(path)


def contents(path: Path) -> tuple[list[Path], list[Path]]:
    """The files of a checkpoint's directory: those that save() wrote, and all else (files of others, links, folders)."""
    listed: set[str] = set()
    with suppress(CheckpointError, OSError):
        listed = set(read_index(path)["files"])
    ours: list[Path] = []
    theirs: list[Path] = []
    for folder, subfolders, files in os.walk(path):
        for name in [*subfolders, *files]:
            file = Path(folder, name)
            short = file.relative_to(path).as_posix()
            if short == "tokenizer" and kind(file) == "folder":
                continue
            known = short in listed or short in KNOWN
            (ours if known and kind(file) == "file" else theirs).append(file)
        subfolders[:] = [n for n in subfolders if kind(Path(folder, n)) == "folder"]
    return ours, theirs


def remove(path: Path) -> None:
    """Delete a checkpoint's directory, its name first; files of others stay where they are, and so does their directory."""
    gone = path.with_name(".deleted-" + path.name) if STEP_NAME.fullmatch(path.name) else path
    ours = [file.relative_to(path) for file in contents(path)[0]]
    if gone != path:
        os.replace(path, gone)
    for file in ours:
        (gone / file).unlink(missing_ok=True)
    for folder in (gone / "tokenizer", gone):
        with suppress(FileNotFoundError, NotADirectoryError):
            if not os.listdir(folder):
                folder.rmdir()


def check_params(path: Path, params: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse parameters that do not fit a model.      shapes: name -> tuple, as model.parameter_shapes(config) gives"""
    check_shapes(path, {name: describe(x) for name, x in params.items()}, shapes)


def check_shapes(path: Path, described: dict[str, list], shapes: dict[str, tuple[int, ...]]) -> None:
    """As check_params, from the index alone.      described: name -> [dtype, shape]"""
    wanted = {name: [described["theta"][0] if "theta" in described else "", list(shape)] for name, shape in shapes.items()}
    compare(path, "the model of its configuration", described, wanted)


def from_json(cls: type, values: Any, where: Any) -> Any:
    """A frozen dataclass from its JSON dict (lists become tuples).

    CheckpointError lists unknown and missing names, and names a value of another type or one that the class refuses.
    """
    kinds = {f.name: f.type for f in fields(cls)}
    if not isinstance(values, dict) or set(values) != set(kinds):
        given = set(values) if isinstance(values, dict) else set()
        raise CheckpointError(f"{where}: written by another version of sparc_ref, use that one: {cls.__name__} "
                              f"lacks {sorted(set(kinds) - given)} and does not know {sorted(given - set(kinds))}")
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    for name, value in values.items():
        if not of_type(value, kinds[name]):
            wanted = getattr(kinds[name], "__name__", kinds[name])
            raise CheckpointError(f"{where}: {cls.__name__}.{name}: expected {wanted}, got {str(value)[:60]!r}; "
                                  "not a configuration that sparc_ref wrote")
    try:
        return cls(**values)
    except ValueError as error:
        raise CheckpointError(f"{where}: {cls.__name__}: {error}") from error


# ------------------------------------------------------------------------------------------------------- the parts


def of_type(value, kind):
    """Whether a JSON value is exactly of a field's type: bool is no int, "1" no number, NaN nothing at all."""
    if type(value) in (int, float) and not abs(value) < 2**53:  # sizes beyond any, NaN
        return False
    kinds = typing.get_args(kind) or (kind,)
    return type(value) in kinds or (float in kinds and type(value) is int)


def check_sizes(path, index):
    """Every file is as long as the index says, and no longer than the tensors that it lists need."""
    for name, entry in index["files"].items():
        most = MAX_INDEX_BYTES
        if name in index["tensors"]:
            tensors = index["tensors"][name]
            for key, about in tensors.items():
                if not (isinstance(about, list) and len(about) == 2 and isinstance(about[1], list)
                        and all(type(n) is int and 0 <= n < 2**53 for n in about[1])):
                    raise refuse(path, f"{INDEX} does not have the expected structure at {key}")
                if about[0] not in DTYPES:
                    raise refuse(path, f"{key} has dtype {about[0]}; expected one of {DTYPES}")
            most = sum(ITEM_BYTES[dtype] * math.prod(shape) for dtype, shape in tensors.values())
            most += 1024 + sum(6 * len(key) + 256 for key in tensors)  # the header
        file = path / name
        if (path / "tokenizer").is_symlink() or file.is_symlink() or not file.is_file():
            raise refuse(path, f"{name} is missing or not a plain file")
        size = file.stat().st_size
        if size != entry["bytes"]:
            raise refuse(path, f"{name} has {size} bytes where {entry['bytes']} were written (truncated or damaged)")
        if size > most:
            raise refuse(path, f"{name} has {size} bytes where its contents need at most {most}")


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
    if (named := STEP_NAME.fullmatch(path.name)) and int(named[1]) != index["step"]:
        raise refuse(path, f"{INDEX} says step {str(index['step'])[:20]}, its folder says another")
    for name in files:
        if not FILE_NAME.fullmatch(name):
            raise refuse(path, f"{INDEX} names the file {name!r}, which no checkpoint has")
    return index


def read_file(path, name, entry):
    try:
        content = (path / name).read_bytes()
    except OSError as error:
        raise refuse(path, f"{name} cannot be read ({error.strerror})") from error
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
