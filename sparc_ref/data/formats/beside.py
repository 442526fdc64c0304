"""A folder where a picture and its caption share a name: key.jpg, key.txt, key.json; as img2dataset writes it, in shards."""

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from ..load_report import LoadReport, Unusable
from ..locate import Tree
from ..names import is_picture, nfc, valid
from .records import CAPTION, Row

MOST_BYTES = 2**20                                                # of one text


def has_pairs(folder: Path) -> bool:
    """Whether a picture lies beside a text of its name, here or one folder deeper."""
    return any(any(map(is_picture, names)) and not all(map(is_picture, names))
               for place in (folder, *(p for p in _shards(folder) if not p.is_symlink())) for names in _by_key(place).values())


def read_pairs(folder: Path, tree: Tree, report: LoadReport) -> Iterator[Row]:
    """key.txt is the caption; without a key.json beside it each of its lines is one. Without key.txt, what key.json says."""
    for place in (folder, *_shards(folder)):
        try:
            tree.inside(place)
        except Unusable as error:
            report.skip(error.reason, place.name, error.note)
            continue
        for deeper in _shards(place) if place != folder and not place.is_symlink() else ():
            if not deeper.is_symlink() and (held := sum(is_picture(n) for _, _, names in os.walk(deeper) for n in names)):
                report.skip("folder too deep, its pictures not read", deeper.relative_to(folder).as_posix(), count=held)
        for key, names in _by_key(place).items():
            where = f"{place.name}/{key}" if place != folder else key
            pictures = [name for name in names if is_picture(name)]
            text, meta = (next((n for n in names if n.lower().endswith(end)), None) for end in (".txt", ".json"))
            if not pictures and text is None and (meta is None or not _is_sample(place / meta, tree)):
                continue                                          # a readme, a shard's statistics
            if len(pictures) != 1:
                reason = "several pictures of one key" if pictures else "download without a picture"
                report.skip(reason, where, ", ".join(pictures))
                continue
            if text is None and meta is None:
                report.skip("picture without a caption", where)
                continue
            try:
                if text is not None:
                    content = _read(place / text, tree)
                    captions = [content] if meta is not None else [line for line in content.split("\n") if line.strip()] or [""]
                else:
                    captions = _from_json(_read(place / str(meta), tree))
            except Unusable as error:
                report.skip(error.reason, where, error.note)
                continue
            yield Row(where, (place / pictures[0]).relative_to(folder).as_posix(), captions)


def _shards(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _by_key(folder: Path) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and (is_picture(path.name) or path.suffix.lower() in (".txt", ".json")):
            keys[nfc(path.stem)].append(path.name)                # a picture from macOS, its text from elsewhere
    return keys


def _read(path: Path, tree: Tree) -> str:
    """A text inside the folder.   Unusable: a link that leaves it, no regular file, too large, unreadable"""
    file = tree.inside(path)
    try:
        if not file.is_file() or file.stat().st_size > MOST_BYTES:
            raise Unusable("caption file unreadable", f"expected a file of at most {MOST_BYTES} bytes")
        return file.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape").replace("\r", "\n")
    except OSError as error:
        raise Unusable("caption file unreadable", str(error)) from error


def _json(path_or_text: str):
    try:
        return json.loads(path_or_text)
    except (ValueError, RecursionError):
        return None


def _from_json(text: str) -> list:
    record = _json(text) if valid(text) else None
    record = record if isinstance(record, dict) else {}
    found = next((record[field] for field in CAPTION if record.get(field) is not None), None)
    if found is None:
        raise Unusable("picture without a caption", "none in its JSON")
    return found if isinstance(found, list) else [found]


def _is_sample(path: Path, tree: Tree) -> bool:
    """Whether a JSON file without picture is one of img2dataset's downloads that failed, and no shard's statistics."""
    try:
        record = _json(_read(path, tree))
    except Unusable:
        return False
    return isinstance(record, dict) and "key" in record and "status" in record
