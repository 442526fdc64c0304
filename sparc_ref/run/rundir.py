"""The run directory: what a training run writes beside its checkpoints, and the checks before it is continued.

    config.json      what is trained, on what; a run is resumed with the same only
    metrics.jsonl    one JSON object a line: {"kind": "train", "step": ...} and {"kind": "eval", "step": ..., "split": ...}
    tokenizer/       the tokenizer
    checkpoints/     step_<n>/, the newest of them
"""

import hashlib
import json
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparc_ref.data import load_tokenizer
from sparc_ref.model import SPARCConfig, parameter_shapes
from sparc_ref.run import checkpoint

CONFIG, METRICS, CHECKPOINTS, TOKENIZER = "config.json", "metrics.jsonl", "checkpoints", "tokenizer"
TIMING = ("seconds", "examples_per_second")               # the fields of metrics.jsonl that differ from run to run


def open_run(out, record, tokenizer, resume, overwrite):
    """Make the run directory, or check that it holds this very run.   -> Checkpoint to continue from, or None"""
    config = out / CONFIG
    if overwrite:
        for name in (CONFIG, METRICS):
            (out / name).unlink(missing_ok=True)
        for name in (CHECKPOINTS, TOKENIZER):
            shutil.rmtree(out / name, ignore_errors=True)
    start, found = None, checkpoint.steps(out / CHECKPOINTS)
    if config.exists() or found:
        if not resume:
            raise ValueError(f"{out} holds a run already: continue it with --resume, replace it with --overwrite, "
                             "or choose another directory with --out")
        start = checkpoint.load(found[-1]) if found else None
        stored = start.record.get("config") if start else json.loads(config.read_text("utf-8"))
        if different := differences(stored, record):
            raise ValueError(f"--resume: {out} was started with other settings; " + "; ".join(different[:8]))
    else:
        tokenizer.save(out / TOKENIZER)
        part = config.with_suffix(".part")
        part.write_text(json.dumps(record, indent=1), encoding="utf-8")
        os.replace(part, config)
    saved = load_tokenizer(out / TOKENIZER)
    if saved.hash != tokenizer.hash:
        raise ValueError(f"--resume: the tokenizer in {out / TOKENIZER} is not the one of this run ({saved.hash[:12]} there, "
                         f"{tokenizer.hash[:12]} here)")
    return start


def differences(there, here, path=""):
    """What differs between two JSON values, in words."""
    if isinstance(there, dict) and isinstance(here, dict):
        names = [*there, *(k for k in here if k not in there)]
        return [d for k in names for d in differences(there.get(k), here.get(k), f"{path}.{k}" if path else str(k))]
    return [] if there == here else [f"{path}: {shorten(there)} there, {shorten(here)} here"]


class Metrics:
    """metrics.jsonl: rows are appended, each in one write; cut() drops what lies past a checkpoint."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        self.file = open(self.path, "a", encoding="utf-8")
        return self

    def __exit__(self, *_):
        self.flush()
        self.file.close()

    def cut(self, step):
        """Keep the rows up to `step`; before the first update, none."""
        rows = read_metrics(self.path) if step and self.path.exists() else []
        part = self.path.with_suffix(".part")
        part.write_text("".join(json.dumps(r) + "\n" for r in rows if r["step"] <= step), encoding="utf-8")
        os.replace(part, self.path)

    def write(self, row):
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def flush(self):
        self.file.flush()
        os.fsync(self.file.fileno())


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """The rows of a metrics file; a last line that a kill cut short is left out.   ValueError for any other damage"""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    rows = []
    for n, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if n < len(lines):
                raise ValueError(f"{path}, line {n}: not JSON ({error}); delete that line") from error
    return rows


@contextmanager
def lock(out):
    """Refuse a second process in the same run directory; the system releases the lock however this process ends."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as file:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{out}: another process is training here; wait for it or choose another --out") from None
        yield


def fingerprint(dataset: Any, most: int = 64) -> dict:
    """What a data set says of itself, and a sha256 over up to `most` of its examples, evenly spread.   -> JSON-able dict"""
    digest = hashlib.sha256()
    for i in range(0, len(dataset), -(-len(dataset) // most)):
        example = dataset[i]
        digest.update(json.dumps([i, list(example.captions), list(example.image.shape)]).encode())
        digest.update(example.image.tobytes())
    return {**dataset.describe(), "sha256 of some examples": digest.hexdigest()}


def load_run(path: str | os.PathLike) -> tuple[dict, SPARCConfig, Any, checkpoint.Checkpoint]:
    """A trained model from a checkpoint or a run directory.   -> params, config, tokenizer, Checkpoint

    CheckpointError (a ValueError) for anything that is wrong with it.
    """
    found = checkpoint.load(path)
    config = checkpoint.from_json(SPARCConfig, found.record.get("config", {}).get("model"), found.path)
    checkpoint.check_params(found.path, found.params, parameter_shapes(config))
    tokenizer = load_tokenizer(found.tokenizer_dir)
    if tokenizer.hash != found.tokenizer or tokenizer.vocab_size != config.vocab_size:
        raise checkpoint.CheckpointError(f"{found.path}: its tokenizer is not the one that the model was trained with")
    return found.params, config, tokenizer, found


def shorten(value, most=80):
    """A JSON-able value in at most so many characters."""
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= most else text[:most - 3] + "..."
