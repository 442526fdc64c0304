"""Reading a folder that nobody vouches for: sizes before contents, hashes before parsing, and never outside the folder.

Every refusal is a ValueError that names the file and the reason.
"""

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

FILE_LIMIT = 1 << 20  # bytes of one case
MANIFEST_LIMIT = 4 << 20
DEPTH_LIMIT = 16
DTYPES: dict[str, Any] = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "I64": np.dtype("<i8"), "BOOL": np.dtype("?")}


def list_folder(folder: Path) -> list[str]:
    """The names in the folder.  Refuses links, folders, devices, and names that differ in case alone."""
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{folder}: there is no such folder") from None
    seen: dict[str, str] = {}
    for entry in sorted(entries, key=lambda e: e.name):
        if entry.is_symlink():
            raise ValueError(f"{entry.name}: refused: it is a link, which may lead outside of the folder")
        if not entry.is_file(follow_symlinks=False):
            raise ValueError(f"{entry.name}: refused: it is not a plain file")
        if entry.name.lower() in seen:
            raise ValueError(f"{entry.name}: refused: it differs from {seen[entry.name.lower()]} in case alone")
        seen[entry.name.lower()] = entry.name
    return list(seen.values())


def read_bytes(folder: Path, name: str, limit: int) -> bytes:
    """A plain file's content, refused unread when it is longer than `limit`."""
    if "/" in name or "\\" in name or name in ("", ".", "..") or "\0" in name:
        raise ValueError(f"{name!r}: refused: not the plain name of a file")
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(folder / name, flags)
    except FileNotFoundError:
        raise ValueError(f"{name}: the file is missing") from None
    except OSError as error:
        raise ValueError(f"{name}: refused: {error.strerror}") from None
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{name}: refused: it is not a plain file")
        if status.st_size > limit:
            raise ValueError(f"{name}: refused: {status.st_size} bytes, where at most {limit} are allowed")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{name}: refused: it grew while it was read")
    return content


def parse_json(content: bytes, name: str) -> Any:
    """JSON without duplicate keys, NaN, infinity, numbers out of range, or deep nesting."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{name}: refused: not UTF-8") from None
    depth = deepest = 0
    for mark in re.findall(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', text):
        depth += mark in "[{"
        depth -= mark in "]}"
        deepest = max(deepest, depth)
    if deepest > DEPTH_LIMIT:
        raise ValueError(f"{name}: refused: nested {deepest} deep, where at most {DEPTH_LIMIT} are allowed")

    def unique(pairs):
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [key for key, _ in pairs]
            raise ValueError(f"the key {next(k for k in names if names.count(k) > 1)!r} stands twice")
        return found

    def constant(word):
        raise ValueError(f"the number {word} is not finite")

    def number(text):
        value = float(text)
        return value if math.isfinite(value) else constant(text)

    def whole(text):
        return int(text) if len(text) < 19 else constant(f"{text[:20]}... of {len(text)} digits")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant, parse_float=number, parse_int=whole)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: refused: {error}") from None


def parse_safetensors(content: bytes, name: str, expected: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The tensors of a file, if they are the expected ones to the byte.      expected: name -> {"dtype", "shape"}

    Nothing is believed: the header's length, its JSON, every name, dtype, shape and range of bytes is checked, and no memory
    is taken but what the file already fills.
    """
    if len(content) < 8:
        raise ValueError(f"{name}: refused: {len(content)} bytes are too few for a header")
    size = int.from_bytes(content[:8], "little")
    if size > len(content) - 8:
        raise ValueError(f"{name}: refused: its header claims {size} bytes, the file has {len(content)}")
    header, body = parse_json(content[8 : 8 + size], name), content[8 + size :]
    if not isinstance(header, dict) or header.keys() != expected.keys():
        odd = sorted((set(header) if isinstance(header, dict) else {type(header).__name__}) ^ expected.keys())
        raise ValueError(f"{name}: refused: tensors differ from the manifest's in {', '.join(odd[:5])}")
    spans, tensors = [], {}
    for key, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{name}: refused: {key}: expected dtype, shape and data_offsets")
        want = expected[key]
        if entry["dtype"] != want["dtype"] or entry["shape"] != want["shape"]:
            said = f"{want['dtype']} {want['shape']}"
            raise ValueError(f"{name}: refused: {key} is {entry['dtype']} {entry['shape']}, the manifest says {said}")
        dtype, offsets = DTYPES[want["dtype"]], entry["data_offsets"]
        length = math.prod(want["shape"]) * dtype.itemsize
        if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(i) is int for i in offsets)):
            raise ValueError(f"{name}: refused: {key}: data_offsets {offsets!r}")
        start, end = offsets
        if not 0 <= start <= end <= len(body) or end - start != length:
            raise ValueError(f"{name}: refused: {key}: bytes {start} to {end} of {len(body)}, where {length} are needed")
        spans.append((start, end))
        raw = np.frombuffer(body, np.uint8, length, start)
        if want["dtype"] == "BOOL" and raw.size and raw.max() > 1:
            raise ValueError(f"{name}: refused: {key} holds a bool that is neither 0 nor 1")
        tensors[key] = raw.view(dtype).reshape(want["shape"]).copy()
    position = 0
    for start, end in sorted(spans):
        if start != position:
            raise ValueError(f"{name}: refused: gap or overlap at byte {position} of the data")
        position = end
    if position != len(body):
        raise ValueError(f"{name}: refused: {len(body) - position} bytes belong to no tensor")
    return tensors


def digest(content: bytes) -> str:
    """sha256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
