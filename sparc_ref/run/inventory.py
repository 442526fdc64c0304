"""What a run wrote into its folder, told from everything else, so that nothing else is ever deleted or written over.

    known      the files that a run writes, by name; of a checkpoint, those that its index lists as well
    in_the_way what lies where a run writes and is not what a run writes there: links, folders for files, files of others
               inside of a checkpoint
Whatever else lies in the folder stays as it is.
"""

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparc_ref.run import checkpoint
from sparc_ref.run.files import kind, read_bytes

CONFIG, METRICS, CHECKPOINTS, TOKENIZER, LOCK, FINAL = (
    "config.json", "metrics.jsonl", "checkpoints", "tokenizer", ".lock", "final.json")
FILES = (LOCK, CONFIG, METRICS, FINAL, *(f".{name}.part" for name in (CONFIG, METRICS, FINAL)))
TOKENIZER_FILE = re.compile(r"tokenizer\.(json|model)(\.part)?")
RECORD = {"model", "train", "tokenizer", "data", "validation"}  # the keys of a run's config.json
OPTIONAL = {"objective"}                                  # a key of those runs alone that are not SPARC's


@dataclass
class Inventory:
    """See above.  state: "empty" (or not there), "started" (killed before its first update), "run" or "foreign"."""

    state: str = "empty"
    known: list[Path] = field(default_factory=list)       # files
    checkpoints: list[Path] = field(default_factory=list)  # folders, whatever is left of a checkpoint
    in_the_way: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)      # at the top


def inventory(out: Path) -> Inventory:
    """Look through a folder without following a link or changing anything."""
    found = Inventory()
    for path in entries(out):
        what = kind(path)
        if path.name in FILES:
            (found.known if what == "file" else found.in_the_way).append(path)
        elif path.name == TOKENIZER:
            for file in entries(path) if what == "folder" else [path]:
                if file is path or TOKENIZER_FILE.fullmatch(file.name):
                    (found.known if kind(file) == "file" else found.in_the_way).append(file)
        elif path.name == CHECKPOINTS:
            for folder in entries(path) if what == "folder" else [path]:
                if folder is path or (kind(folder) != "folder" and checkpoint.OURS.fullmatch(folder.name)):
                    found.in_the_way.append(folder)
                elif checkpoint.OURS.fullmatch(folder.name):
                    ours, theirs = checkpoint.contents(folder)
                    found.checkpoints.append(folder)
                    found.known += ours
                    found.in_the_way += theirs
        else:
            found.others.append(path)
    marked = is_record(out / CONFIG) or bool(checkpoint.steps(out / CHECKPOINTS) and any(map(is_checkpoint, found.checkpoints)))
    if marked:
        complete = [p for p in found.checkpoints if checkpoint.STEP_NAME.fullmatch(p.name)]
        found.state = "run" if complete or trained(out / METRICS) else "started"
    elif any(p.name not in (LOCK, f".{CONFIG}.part") for p in entries(out)):
        found.state = "foreign"
    return found


def refuse_links(out: Path, found: Inventory) -> None:
    """ValueError where a run would write through a link."""
    if links := [p for p in found.in_the_way if kind(p) == "link"]:
        raise ValueError(f"{links[0]} is a link, and a run writes through none: put the real thing there, or choose another "
                         "--out (which may itself be a link)")
    if odd := [p for p in found.in_the_way if p.parent in (out, out / CHECKPOINTS, out / TOKENIZER)]:
        raise ValueError(f"{odd[0]}: a run keeps something else under this name; move it, or choose another --out")


def remove(out: Path, found: Inventory) -> None:
    """Delete what a run wrote, the configuration and the lock excepted; checkpoints lose their names first."""
    for folder in found.checkpoints:
        checkpoint.remove(folder)
    for path in found.known:
        if path.name not in (CONFIG, LOCK) or path.parent != out:
            path.unlink(missing_ok=True)


def entries(folder: Path) -> list[Path]:
    """What a folder holds, in order; nothing where it is none."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return sorted(folder.iterdir())
    return []


def is_record(path: Path) -> bool:
    """Whether a file is the configuration of a run."""
    if kind(path) != "file" or path.stat().st_size > checkpoint.MAX_INDEX_BYTES:
        return False
    try:
        content = json.loads(read_bytes(path))
    except (ValueError, RecursionError):
        return False
    return is_run(content)


def is_run(content: Any) -> bool:
    """Whether a JSON value is a run's configuration: more than five common words, as other programs use them too."""
    if not isinstance(content, dict) or not content.keys() >= RECORD or not isinstance(content["tokenizer"], str):
        return False
    sources = content.get("sources", {})
    return (isinstance(sources, dict) and isinstance(sources.get("command", ""), str)
            and all(isinstance(content[key], dict) for key in RECORD - {"tokenizer"})
            and content["model"].keys() >= {"patch_size", "lambda_g", "lambda_f"}
            and content["train"].keys() >= {"warmup", "eval_limit"}
            and all(isinstance(x, dict) for key in ("data", "validation") for x in content[key].values()))


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds the index of a checkpoint, sound or not."""
    try:
        head = (folder / checkpoint.INDEX).open("rb").read(200) if kind(folder / checkpoint.INDEX) == "file" else b""
    except OSError:
        return False
    return checkpoint.FORMAT.encode() in head


def trained(metrics: Path) -> bool:
    """Whether metrics were written of any update."""
    return kind(metrics) == "file" and os.stat(metrics).st_size > 0 and b'"kind": "train"' in read_bytes(metrics)
