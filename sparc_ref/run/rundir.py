"""The run directory: what a training run writes beside its checkpoints, and the checks before it is started or continued.

    config.json      what is trained, on what; a run is resumed with the same only
    metrics.jsonl    one JSON object a line: {"kind": "train", "step": ...} and {"kind": "eval", "step": ..., "split": ...}
    tokenizer/       the tokenizer
    checkpoints/     step_<n>/, the newest of them
    .lock            empty; held by the process that trains

inventory.py tells these from files of others, which no run deletes or writes over.
"""

import hashlib
import json
import os
import stat
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sparc_ref.data import Joined, Limited, load_tokenizer
from sparc_ref.model import SPARCConfig, parameter_shapes
from sparc_ref.objectives.chosen import ObjectiveConfig, own_shapes
from sparc_ref.run import checkpoint
from sparc_ref.run.files import NO_FOLLOW, WriteFailed, read_bytes, write_all, write_whole, writing
from sparc_ref.run.inventory import (
    CHECKPOINTS,
    CONFIG,
    LOCK,
    METRICS,
    OPTIONAL,
    RECORD,
    TOKENIZER,
    Inventory,
    inventory,
    is_run,
    refuse_links,
    remove,
    trained,
)

TIMING = ("seconds", "examples_per_second")               # the fields of metrics.jsonl that differ from run to run


def check_out(out: str | os.PathLike, resume: bool, overwrite: bool) -> Inventory:
    """Whether a run may be written to a folder, before anything is.   -> what is there; ValueError with the remedy

    Refused: --resume with --overwrite; an empty name; a file; a folder that holds other things and no run; a run, unless it is
    to be resumed or overwritten; links where a run would write; for overwriting, files of others inside of a checkpoint.
    """
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other: one continues the run that is there, one deletes it")
    if not os.fspath(out):
        raise ValueError("--out: expected the name of a folder, got an empty one")
    out = Path(out)
    try:
        os.stat(out)
    except (FileNotFoundError, NotADirectoryError):
        there = next((path for path in (out, *out.parents) if os.path.lexists(path)), out.parent)
        if not there.is_dir():
            where = f" at {there}" if there != out else ""
            raise ValueError(f"--out {out}: expected a folder, or a name that is still free, got a file or a broken link{where}"
                             ) from None
        return Inventory()
    except (OSError, ValueError) as error:                # too long, a zero byte, a loop of links, no permission
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"--out {shorten(str(out))}: no run can be there ({reason}); choose another name") from error
    if not out.is_dir():
        raise ValueError(f"--out {out}: expected a folder, or a name that is still free, got a file or a broken link")
    found = inventory(out)
    if found.state == "foreign":
        names = ", ".join(sorted(p.name for p in [*found.others, *found.known, *found.in_the_way])[:3]) or CHECKPOINTS
        raise ValueError(f"--out {out}: the folder is neither empty nor a run (it holds {names}); choose another. "
                         "Nothing in it was touched")
    refuse_links(out, found)
    if overwrite and found.in_the_way:
        raise ValueError(f"--overwrite: {found.in_the_way[0]} lies in a checkpoint and no run wrote it; move it elsewhere, or "
                         "choose another --out. Nothing was deleted")
    if found.state == "run" and not resume and not overwrite:
        raise ValueError(f"{out} holds a run already: continue it with --resume, replace it with --overwrite, "
                         "or choose another directory with --out")
    return found


def open_run(out, record, tokenizer, resume, overwrite):
    """Make the run directory, or check that it holds this very run.   -> Checkpoint to continue from, or None

    A run that was stopped before its first update is nothing yet: it is started anew, with any settings.
    """
    found, start = check_out(out, resume, overwrite), None
    with writing(out / CHECKPOINTS):
        checkpoint.clean(out / CHECKPOINTS)               # what a killed process left
    if found.state == "run" and resume:
        stored = stored_record(out / CONFIG)

        def check(path, index):
            if different := differences(settings(index["record"].get("config")), settings(record)):
                raise ValueError(f"--resume: {out} was started with other settings; " + "; ".join(different[:8]))
            config = checkpoint.from_json(SPARCConfig, record["model"], path)
            checkpoint.check_shapes(path, index["tensors"][checkpoint.PARAMETERS], shapes_of(config, record, path))

        if steps := checkpoint.steps(out / CHECKPOINTS):
            start = checkpoint.load(steps[-1], check)
        elif different := differences(settings(stored), settings(record)):
            raise ValueError(f"--resume: {out} was started with other settings; " + "; ".join(different[:8]))
    else:
        with writing(out):
            remove(out, found)
        write_whole(out / CONFIG, json.dumps(record, indent=1))
    if not (out / TOKENIZER / "tokenizer.json").exists():  # its hash is among the settings
        with writing(out / TOKENIZER):
            tokenizer.save(out / TOKENIZER)
    saved = load_tokenizer(out / TOKENIZER)
    if saved.hash != tokenizer.hash:
        raise ValueError(f"--resume: the tokenizer in {out / TOKENIZER} is not the one of this run ({saved.hash[:12]} there, "
                         f"{tokenizer.hash[:12]} here)")
    return start


def stored_record(path):
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def settings(record):
    """Of a run's record what must be the same when it is resumed."""
    return {k: v for k, v in record.items() if k in RECORD | OPTIONAL} if isinstance(record, dict) else record


def differences(there, here, path=""):
    """What differs between two JSON values, in words."""
    if isinstance(there, dict) and isinstance(here, dict):
        names = [*there, *(k for k in here if k not in there)]
        return [d for k in names for d in differences(there.get(k), here.get(k), f"{path}.{k}" if path else str(k))]
    return [] if there == here else [f"{path}: {shorten(there)} there, {shorten(here)} here"]


class RunGone(OSError):
    """The folder of a run was deleted, moved or replaced while it trained."""


class Metrics:
    """metrics.jsonl: rows are appended, each in one write; cut() drops what lies past a checkpoint.

    write() and flush() raise RunGone where the folder has gone, and WriteFailed where the disk refuses; no half of a row stays.
    """

    def __init__(self, path, then=""):
        self.path, self.then, self.handle = path, then, -1

    def __enter__(self):
        with writing(self.path, self.then):
            folder = os.stat(self.path.parent)
        self.folder = folder.st_dev, folder.st_ino
        self._open()
        return self

    def __exit__(self, *_):
        handle, self.handle = self.handle, -1
        if handle >= 0:
            with writing(self.path, self.then):
                os.close(handle)

    def _open(self):
        with writing(self.path, self.then):
            self.handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | NO_FOLLOW, 0o666)

    def cut(self, step):
        """Keep the rows up to `step`; before the first update, none."""
        rows = read_metrics(self.path) if step and self.path.exists() else []
        write_whole(self.path, "".join(json.dumps(r) + "\n" for r in rows if r["step"] <= step))

    def check(self):
        """RunGone unless everything is still where it was; a file that was replaced, as editors do, is opened anew."""
        try:
            with writing(self.path, self.then):
                folder, file, mine = os.stat(self.path.parent), os.lstat(self.path), os.fstat(self.handle)
        except WriteFailed as error:
            if not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                raise
            folder = file = None
        if not file or (folder.st_dev, folder.st_ino) != self.folder or not stat.S_ISREG(file.st_mode):
            raise RunGone(f"{self.path.parent}: the run's folder was deleted, moved or replaced while it trained; nothing more "
                          f"was written there. Put it back as it was{self.then or ', or start anew'}")
        if (file.st_dev, file.st_ino) != (mine.st_dev, mine.st_ino):
            with suppress(OSError):                       # what is in it has gone
                os.close(self.handle)
            self._open()

    def write(self, row):
        self.check()
        with writing(self.path, self.then):
            before = os.fstat(self.handle).st_size
            try:
                write_all(self.handle, (json.dumps(row) + "\n").encode())
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self.handle, before)     # no half of a row
                raise

    def flush(self):
        self.check()
        with writing(self.path, self.then):
            os.fsync(self.handle)


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """The rows of a metrics file; a last line that a kill cut short is left out.   ValueError for any other damage"""
    lines = read_bytes(Path(path)).decode("utf-8", "replace").splitlines()
    rows = []
    for n, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if n < len(lines):
                raise ValueError(f"{path}, line {n}: not JSON ({error}); delete that line") from error
            continue
        if not is_row(row):
            raise ValueError(f"{path}, line {n}: expected an object with kind, step, seconds and numbers, as a run writes, got "
                             f"{shorten(line)}; delete that line")
        rows.append(row)
    return rows


def is_row(row: Any) -> bool:
    """Whether a JSON value is what a run writes into its metrics."""
    def numeric(x: Any) -> bool:
        return type(x) in (int, float)

    if isinstance(row, dict) and row.get("kind") == "skipped":           # of the torch trainer: an update that was not finite
        return type(row.get("step")) is int
    return (isinstance(row, dict) and row.get("kind") in ("train", "eval") and type(row.get("step")) is int
            and numeric(row.get("seconds")) and isinstance(row.get("split", ""), str)
            and all(numeric(x) for name, x in row.items() if name not in ("kind", "split")))


@contextmanager
def lock(out):
    """Refuse a second process in the same run directory; the system releases the lock however this process ends.

    Makes the directory.  Yields undo(), for a start that failed: it takes back what was written here since, and the
    directories that were made; a run that was there before stays.
    """
    before = inventory(out).state
    made = [p for p in (out, *out.parents) if not p.exists()]
    fresh = not (out / LOCK).exists()
    try:
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
            handle = os.open(out / LOCK, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o666)
    except OSError:
        with suppress(OSError):
            for path in made:
                path.rmdir()
        raise

    def undo():
        with suppress(OSError):
            if not checkpoint.steps(out / CHECKPOINTS) and (before != "run" or not trained(out / METRICS)):
                remove(out, inventory(out))
                if before != "run":                       # or else it could not be told from a folder of others
                    (out / CONFIG).unlink(missing_ok=True)
                for name in (CHECKPOINTS, TOKENIZER):
                    with suppress(OSError):
                        (out / name).rmdir()
            if fresh or before != "run":
                (out / LOCK).unlink(missing_ok=True)
            for path in made:
                path.rmdir()                              # only what is empty

    try:
        try:
            with writing(out / LOCK):
                held = sys.platform == "win32" or hold(handle, out / LOCK)
        except OSError:
            undo()
            raise
        if not held:
            raise ValueError(f"{out}: another process is training here; wait for it or choose another --out")
        yield undo
    finally:
        with suppress(OSError):                           # an empty file: there is nothing to lose
            os.close(handle)


def hold(handle, path):
    """Lock an open file, if it is still the one of that name.   -> whether it is locked now"""
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine, there = os.fstat(handle), os.stat(path)
    except (BlockingIOError, FileNotFoundError):
        return False
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


def fingerprint(dataset: Any, most: int = 64) -> dict:
    """What a data set says of itself, a sha256 of all of its pictures and captions, and one over the pixels of up to `most`
    examples, evenly spread, as they come out of the decoder.   -> JSON-able dict"""
    digest = hashlib.sha256()
    for i in range(0, len(dataset), -(-len(dataset) // most)):
        example = dataset[i]
        digest.update(json.dumps([i, list(example.captions), list(example.image.shape)]).encode())
        digest.update(example.image.tobytes())
    return {**dataset.describe(), "sha256 of pictures and captions": contents(dataset),
            "sha256 of some decoded pictures": digest.hexdigest()}


def contents(dataset):
    """A sha256 of every picture and caption: the data set's own digest(), or else over all of its examples."""
    if isinstance(dataset, Limited):
        return contents(dataset.dataset)
    if isinstance(dataset, Joined):
        return " ".join(contents(d) for d in dataset.datasets)
    if hasattr(dataset, "digest"):
        return dataset.digest()
    digest = hashlib.sha256()
    for i in range(len(dataset)):
        example = dataset[i]
        digest.update(json.dumps([example.key, list(example.captions), list(example.image.shape)]).encode())
        digest.update(example.image.tobytes())
    return digest.hexdigest()


def load_run(path: str | os.PathLike) -> tuple[dict, SPARCConfig, Any, checkpoint.Checkpoint]:
    """A trained model from a checkpoint or a run directory.   -> params, config, tokenizer, Checkpoint

    CheckpointError (a ValueError) for anything that is wrong with it.
    """
    def check(found, index):
        if not is_run(index["record"].get("config")):
            raise checkpoint.CheckpointError(f"{found}: its configuration is not one that sparc_ref wrote; expected what "
                                             "sparc-ref train writes")
        config = checkpoint.from_json(SPARCConfig, index["record"]["config"]["model"], found)
        tensors = index["tensors"][checkpoint.PARAMETERS]
        if (blocks := config.vision_depth + config.text_depth) > len(tensors):
            raise checkpoint.refuse(found, f"its configuration has {blocks} blocks, but it holds {len(tensors)} tensors")
        checkpoint.check_shapes(found, tensors, shapes_of(config, index["record"]["config"], found))

    def read(at):
        found = checkpoint.read_checkpoint(at, check)
        config = checkpoint.from_json(SPARCConfig, found.record["config"]["model"], at)
        tokenizer = load_tokenizer(found.tokenizer_dir)
        if tokenizer.hash != found.tokenizer or tokenizer.vocab_size != config.vocab_size:
            raise checkpoint.CheckpointError(f"{at}: its tokenizer is not the one that the model was trained with")
        return found.params, config, tokenizer, found

    return checkpoint.newest(path, read)


def objective_of(record: dict, where: Any = "") -> ObjectiveConfig:
    """What a run was trained with, of its record: SPARC where nothing else stands there.   CheckpointError for nonsense"""
    kept = record.get("objective")
    return ObjectiveConfig() if kept is None else checkpoint.from_json(ObjectiveConfig, kept, where)


def shapes_of(config: SPARCConfig, record: dict, where: Any = "") -> dict[str, tuple[int, ...]]:
    """Every parameter of a run: the model's, and its objective's own."""
    return parameter_shapes(config) | own_shapes(objective_of(record, where), config.embed_dim)


def sources_of(found: checkpoint.Checkpoint) -> dict:
    """What the run says of its data, see sources.remembered.   ValueError where it says nothing"""
    kept = found.record.get("config", {}).get("sources")
    if not isinstance(kept, dict) or not isinstance(kept.get("data"), list) or not isinstance(kept.get("measured"), dict) or \
            not all(isinstance(spec, str) for spec in [*kept["data"], *kept["measured"].values()]):
        raise ValueError(f"{found.path}: does not say what it was trained on; name what to measure on with --data")
    return kept


def last_evaluation(found: checkpoint.Checkpoint) -> dict:
    """The newest row of its run's metrics that was measured at or before this checkpoint; {} where there is none."""
    file = found.path.parent.parent / METRICS
    rows = read_metrics(file) if found.path.parent.name == CHECKPOINTS and file.is_file() else []
    rows = [r for r in rows if r.get("kind") == "eval" and r.get("step", found.step + 1) <= found.step]
    return next((r for r in rows if r["step"] == rows[-1]["step"]), {})


def shorten(value, most=80):
    """A JSON-able value in at most so many characters."""
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= most else text[:most - 3] + "..."
