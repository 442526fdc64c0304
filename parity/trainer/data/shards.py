"""Tar shards as a data set: shards:PATH[?OPTIONS], where PATH may hold {000..099}, {a,b}, *, ? and [...].

    shards = ShardData(paths, size=224, index="runs/mine/index")
    shards[i]  -> Example, or Unusable with the reason: decoding is done where it is asked for, in worker processes

Every shard is looked through once for where its samples lie (data/tar.py), by its own rank of the run, and the result is kept
in the folder `index`: any sample can then be read alone, which exact resuming needs.  Nothing is written anywhere else.
"""

import glob
import hashlib
import io
import json
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sparc_ref.data.example import Example
from sparc_ref.data.formats.records import CAPTION
from sparc_ref.data.images import read_image
from sparc_ref.data.load_report import LoadReport, Unusable
from sparc_ref.data.names import valid
from sparc_ref.data.tar import Found, read_shard
from sparc_ref.run.files import put

PAGE = "docs/trainer.md"
RETRIES = 3                                               # times that a shard which does not open is tried again
RANGE = re.compile(r"\{([^{}]*)\}")
MAX_SHARDS = 1_000_000


def expand(pattern: str) -> list[str]:
    """Shell braces and wildcards.      "a{00..02}.tar" -> a00.tar, a01.tar, a02.tar, there or not; "*.tar" -> what is there"""
    match = RANGE.search(pattern)
    if not match:
        return sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
    first, dots, last = match[1].partition("..")
    if dots and first.isdigit() and last.isdigit():
        if abs(int(last) - int(first)) >= MAX_SHARDS:
            raise ValueError(f"shards: expected at most {MAX_SHARDS:,} shards, got {match[0]}")
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        parts = [f"{n:0{width}d}" for n in range(int(first), int(last) + 1)]
    else:
        parts = match[1].split(",")
    return [path for part in parts for path in expand(pattern[: match.start()] + part + pattern[match.end() :])]


def open_shards(spec: str, size: int, index: str | os.PathLike, rank: int = 0, world: int = 1,
                meet: Callable[[Callable[[], Any]], Any] = lambda task: task(), strict: bool = False) -> "ShardData":
    """What "shards:PATH?how=crop&caption=text" names.      ValueError for what no shard can be found of"""
    head, _, query = spec.partition("?")
    pattern = head.partition(":")[2]
    options = dict(pair.partition("=")[::2] for pair in query.split("&") if pair)
    if unknown := sorted(options.keys() - {"how", "caption"}):
        raise ValueError(f"data {spec!r}: unknown option {unknown[0]!r}; shards have how=squash|crop and caption=FIELD; "
                         f"see {PAGE}")
    if options.get("how", "squash") not in ("squash", "crop"):
        raise ValueError(f"data {spec!r}: how: expected squash or crop, got {options['how']!r}; see {PAGE}")
    paths = list(dict.fromkeys(os.path.abspath(path) for path in expand(pattern))) if pattern else []
    if not paths:
        raise ValueError(f"data {spec!r}: expected shards, found none; see {PAGE}")
    return ShardData(paths, size, index, how=options.get("how", "squash"), field=options.get("caption", ""), rank=rank,
                     world=world, meet=meet, strict=strict)


class ShardData:
    """Samples of tar shards, in the order of the shards: ds[i] -> Example, or Unusable.

    paths   the shards; one that cannot be opened is tried again, then skipped and named in `report`
    field   of JSON captions, [the usual names]; where it is given, json is preferred to txt
    rank, world, meet   this process looks through every world-th shard; meet(task) does it, and returns when all ranks have
    sizes   how many samples each shard has
    report  what the headers say; what decoding says is counted by who decodes
    """

    classes: tuple[str, ...] = ()

    def __init__(self, paths: Sequence[str], size: int, index: str | os.PathLike, how: str = "squash", field: str = "",
                 rank: int = 0, world: int = 1, meet: Callable[[Callable[[], Any]], Any] = lambda task: task(),
                 strict: bool = False):
        self.paths, self.size, self.how, self.field = list(paths), size, how, field
        self.name = f"shards {Path(paths[0]).name}" + (f" and {len(paths) - 1} more" if paths[1:] else "")
        self.index = Path(index)
        self.index.mkdir(parents=True, exist_ok=True)
        mine = [path for path in self.paths[rank::world] if not index_file(self.index, path, self.prefer).exists()]

        def look() -> None:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda path: look_through(path, self.index, self.prefer), mine))

        meet(look)
        abouts = [read_index(index_file(self.index, path, self.prefer), path)[0] for path in self.paths]
        self.sizes = np.array([about["samples"] for about in abouts], np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self.report = LoadReport(self.name, strict, PAGE)
        self.report.kept = Counter({"samples": int(self.starts[-1]), "shards": int(np.sum(self.sizes > 0))})
        for about in abouts:
            for reason, count in about["skipped"].items():
                self.report.skip(reason, about["names"][reason][0], count=count)
                self.report.names[reason] = (self.report.names[reason][:-1] + about["names"][reason])[:3]
        if not len(self):
            raise ValueError(f"{self.name}: expected at least one sample, found none\n{self.report}")
        self.content = hashlib.sha256(json.dumps([[a["path"], a["bytes"], a["samples"]] for a in abouts]).encode()).hexdigest()

    @property
    def prefer(self) -> str:
        return "json" if self.field else "txt"

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, item: int) -> Example:
        if not 0 <= item < len(self):
            raise IndexError(f"sample {item} of {len(self)}")
        try:
            picture, captions = self.read(item)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")           # Pillow's hints about bombs and odd metadata: checked there
                image = read_image(picture, self.size, self.how)[0]
        except Unusable as error:
            raise Unusable(error.reason, f"{self.key_of(item)}: {error.note}") from error
        path, row = self.place(item)
        return Example(image, captions, (), f"{Path(path).name}, sample {row}")

    def place(self, item: int) -> tuple[str, int]:
        """Which shard a sample is in, and as the how many-th."""
        shard = int(np.searchsorted(self.starts, item, "right")) - 1
        return self.paths[shard], int(item - self.starts[shard])

    def read(self, item: int, picture: bool = True) -> tuple[bytes, tuple[str, ...]]:
        """The picture's bytes and the captions of a sample.      Unusable where there is no caption"""
        path, number = self.place(item)
        row = rows_of(str(index_file(self.index, path, self.prefer)), path)[number].tolist()
        captions = captions_of(read_at(path, row[2], row[3]), bool(row[4]), self.field)
        return read_at(path, row[0], row[1]) if picture else b"", captions

    def key_of(self, item: int) -> str:
        """A sample's shard and key, for messages."""
        path, number = self.place(item)
        return f"{Path(path).name}/{read_index(index_file(self.index, path, self.prefer), path, 'keys')[1][number]}"

    def texts(self, most: int, seed: int = 0) -> list[str]:
        """Captions of up to `most` samples, drawn evenly, in the order of the shards; what is unusable is left out."""
        rng = np.random.default_rng(seed)
        out: list[str] = []
        for item in np.sort(rng.choice(len(self), min(most, len(self)), replace=False)):
            try:
                out += self.read(int(item), picture=False)[1]
            except Unusable:
                continue
        return out

    def describe(self) -> dict:
        """Name, counts and the report, JSON-able."""
        return {"name": self.name, "kind": "tar shards", "count": len(self), "shards": len(self.paths), "size": self.size,
                "resize": self.how, "report": self.report.as_dict()}

    def digest(self) -> str:
        """sha256 of every shard's path, size and number of samples."""
        return self.content


def captions_of(data: bytes, is_json: bool, field: str) -> tuple[str, ...]:
    """The captions of a txt or json member, runs of white space made one space.      Unusable with the reason"""
    try:
        text: Any = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unusable("caption is not valid UTF-8") from error
    if is_json:
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Unusable("caption's JSON is damaged") from error
        if not isinstance(record, dict):
            raise Unusable("caption's JSON is no object")
        name = field or next((name for name in CAPTION if record.get(name)), "")
        text = record.get(name)
        if text is None:
            raise Unusable("caption's JSON has no such field", field or ", ".join(CAPTION))
    found = text if isinstance(text, list) else [text]
    if not all(isinstance(each, str) for each in found):
        raise Unusable("caption is not text")
    found = [" ".join(each.replace("\0", " ").split()) for each in found if valid(each)]
    if not any(found):
        raise Unusable("caption is empty")
    return tuple(each for each in found if each)


def read_at(path: str, offset: int, size: int) -> bytes:
    """Bytes of a shard.      Unusable where it cannot be read any more, after trying again"""
    for attempt in range(RETRIES + 1):
        try:
            data = os.pread(opened(path).fileno(), size, offset)
            if len(data) == size:
                return data
            raise OSError("shard became shorter")
        except OSError as error:
            opened.cache_clear()
            if attempt == RETRIES:
                raise Unusable("shard cannot be read", f"{path}: {error}") from error
            time.sleep(0.1 * 2**attempt)
    raise AssertionError("not reached")


@lru_cache(128)
def opened(path: str) -> BinaryIO:
    return open(path, "rb", buffering=0)                  # closed when the cache forgets it


# ------------------------------------------------------------------------------------------------------------ the index


def index_file(folder: Path, path: str, prefer: str) -> Path:
    return folder / f"{hashlib.sha256(f'{prefer} {path}'.encode()).hexdigest()[:32]}.npz"


def look_through(path: str, folder: Path, prefer: str) -> None:
    """Write the index of a shard.  One that does not open, after trying again, has no samples and says why."""
    size, found = 0, Found()
    for attempt in range(RETRIES + 1):
        try:
            if not os.path.isfile(path):                  # a pipe would block for ever
                raise OSError("no such file" if not os.path.exists(path) else "not a plain file")
            size, found = os.stat(path).st_size, read_shard(path, prefer)
            break
        except OSError as error:
            if attempt == RETRIES:
                found = Found()
                found.skip("shard does not open", f"{path}: {error.strerror or error}")
            else:
                time.sleep(0.1 * 2**attempt)
    rows = np.array([(s.picture.offset, s.picture.size, s.caption.offset, s.caption.size, s.kind == "json")
                     for s in found.samples], np.int64).reshape(-1, 5)
    about = {"path": path, "bytes": size, "samples": len(rows), "skipped": found.skipped, "names": found.names}
    keys = json.dumps([s.key for s in found.samples])
    target = index_file(folder, path, prefer)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    buffer = io.BytesIO()
    np.savez(buffer, rows=rows, about=as_bytes(json.dumps(about)), keys=as_bytes(keys))
    put(part, buffer.getvalue())
    os.replace(part, target)


def as_bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)


def read_index(file: Path, path: str, what: str = "rows") -> tuple[dict, Any]:
    """What look_through wrote: about, and rows (N,5) or keys.      ValueError where the shard is another one by now"""
    with np.load(file, allow_pickle=False) as kept:
        about = json.loads(kept["about"].tobytes().decode("utf-8", "surrogatepass"))
        found = kept["rows"] if what == "rows" else json.loads(kept["keys"].tobytes().decode("utf-8", "surrogatepass"))
    if about["samples"] and (not os.path.isfile(path) or os.stat(path).st_size != about["bytes"]):
        raise ValueError(f"{path}: has changed since it was looked through; put it back, or delete {file} and start anew")
    return about, found


@lru_cache(1024)
def rows_of(file: str, path: str) -> np.ndarray:
    """40 bytes a sample; a process reads from so many shards at a time as are shuffled together."""
    return read_index(Path(file), path)[1]
