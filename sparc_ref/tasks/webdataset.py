"""The layout that CLIP_benchmark's published sets share:

    root/test/nshards.txt, 0.tar, 1.tar, ...     root/train/ the same, where there is one
    root/dataset_type.txt                        "retrieval"; "classification" or no such file otherwise
    root/classnames.txt                          one name a line, the line's number from 0 on is the label in .cls
    root/zeroshot_classification_templates.txt   one prompt a line, {c} for the name

A sample is a picture (jpg, jpeg, png, webp) and a .cls, the label's number as text, or a .txt, one caption a line.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from sparc_ref.data.tar import Sample, read_shard
from sparc_ref.tasks.stream import Source

PAGE = "docs/tasks/classification.md"
MAX_SHARDS = 100_000
MAX_LIST = 64 * 2**20                                     # bytes of a list of names, prompts or labels


@dataclass
class Shards:
    """The samples of one split, in the order of the shards, and what was left out of them."""

    pictures: list[Source]
    texts: list[Source]                                   # .cls or .txt
    counts: Counter[str]


def open_shards(root: Path, split: str, kind: str) -> Shards:
    """The split's samples.      kind: "classification" or "retrieval"

    ValueError: no such layout, a set of the other kind, a shard too few, no sample.
    """
    found = root / "dataset_type.txt"
    actual = " ".join(read_lines(found)).lower() if found.is_file() else "classification"
    if (actual == "retrieval") != (kind == "retrieval"):
        absent = "" if found.is_file() else ", as there is no such file"
        raise ValueError(f"{found}: expected {kind}, got {actual[:40]!r}{absent}; "
                         f"measure it with --task {'retrieval' if actual == 'retrieval' else 'classification'}")
    folder = root / split
    number = folder / "nshards.txt"
    if not number.is_file():
        there = ", ".join(sorted(p.parent.name for p in root.glob("*/nshards.txt"))[:5])
        raise ValueError(f"{number}: expected the number of shards, found no such file; "
                         + (f"there are the splits {there}: ?split=" if there else "name the folder that holds test/"))
    lines = read_lines(number)
    if len(lines) != 1 or not lines[0].isascii() or not lines[0].isdigit() or not 1 <= int(lines[0][:9]) <= MAX_SHARDS:
        raise ValueError(f"{number}: expected one number, 1 to {MAX_SHARDS:,}, got {' '.join(lines)[:40]!r}")
    paths = [folder / f"{n}.tar" for n in range(int(lines[0]))]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise ValueError(f"{folder}: expected 0.tar to {paths[-1].name}, as nshards.txt says; {len(missing)} are missing: "
                         f"{', '.join(missing[:5])}; fetch them")
    suffix, what = {"classification": ("cls", "label"), "retrieval": ("txt", "caption")}[kind]
    out = Shards([], [], Counter())
    for path in paths:
        shard = read_shard(path, suffix, (suffix,), what)
        out.counts += shard.skipped
        out.pictures += [source(path, sample, "picture") for sample in shard.samples]
        out.texts += [source(path, sample, "caption") for sample in shard.samples]
    if not out.pictures:
        left = "; ".join(f"{n} {cause}" for cause, n in out.counts.items())
        raise ValueError(f"{folder}: expected pictures, each with a .{suffix} of its name, found none{left and ': ' + left}")
    return out


def source(path: Path, sample: Sample, which: str) -> Source:
    member = getattr(sample, which)
    return Source(str(path), member.offset, member.size)


def text_of(source: Source) -> str | None:
    """A member's text; None where it is not UTF-8."""
    content = source.content()
    assert isinstance(content, bytes)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def read_lines(path: Path) -> list[str]:
    """The lines of a list, without white space around.   ValueError: what read_text refuses, an empty line inside"""
    text = read_text(path)
    lines = [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []
    if "" in lines:                                       # left out, it would move all that follow
        raise ValueError(f"{path}: expected one entry a line, got an empty line {lines.index('') + 1}")
    return lines


def read_text(path: Path) -> str:
    """A list, a table or JSON that somebody brings.   ValueError: not there, too long, not UTF-8"""
    try:
        if not path.is_file():                            # a pipe would block for ever
            raise ValueError(f"{path}: expected a file, found no such file")
        if path.stat().st_size > MAX_LIST:
            raise ValueError(f"{path}: expected a list, got {path.stat().st_size:,} bytes, at most {MAX_LIST:,} are read")
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8 ({error.reason} at byte {error.start}); save it as that") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
