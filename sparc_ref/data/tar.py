"""The members of one tar shard, found by its headers alone: nothing is extracted, nothing is read but what is asked for.

A sample is a run of members with one key: the path up to the first dot of the file's name (webdataset's rule), a picture
(jpg, jpeg, png, webp) and a caption (txt or json), or whatever else is asked for in its place.  Headers are parsed one by one
with tarfile.TarInfo, so that a hostile one costs 512 bytes: what follows it is skipped unread, whatever size it claims, and
long names are read up to a bound.
(webdataset reads a shard as a stream, from which no sample can be taken again without reading all before it.)
"""

import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

PICTURES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("txt", "json")
BLOCK = 512
MAX_NAME = 64 * 2**10                                     # bytes of a long name or of pax fields
MAX_TEXT = 2**20                                          # bytes of a caption's member
MAX_PICTURE = 64 * 2**20                                  # bytes of a picture's member
WITH_BYTES = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
              tarfile.GNUTYPE_SPARSE)
OTHER_KINDS = {tarfile.LNKTYPE: "member is a link", tarfile.SYMTYPE: "member is a link", tarfile.CHRTYPE: "member is a device",
               tarfile.BLKTYPE: "member is a device", tarfile.FIFOTYPE: "member is a pipe"}


class Member(NamedTuple):
    """A plain file of the archive: where its bytes lie."""

    name: str
    offset: int
    size: int


class Sample(NamedTuple):
    """One key's picture and caption, or what stands in for one; kind: its extension"""

    key: str
    picture: Member
    caption: Member
    kind: str


@dataclass
class Found:
    """What a shard holds: its samples, and how often each reason left something out, with the first names."""

    samples: list[Sample] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, reason: str, name: str) -> None:
        self.skipped[reason] += 1
        if len(first := self.names.setdefault(reason, [])) < 3:
            first.append(name[:160])


def read_shard(path: str | os.PathLike, prefer: str = "txt", texts: tuple[str, ...] = TEXTS, what: str = "caption") -> Found:
    """Every sample of a shard.

    texts: the extensions of what comes with a picture, `what` in the reasons; prefer: the one taken where a key has several
    """
    found = Found()
    with open(path, "rb") as file:
        if file.read(2) in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5"):
            found.skip("shard is compressed: unpack it, pictures do not get smaller", Path(path).name)
            return found
        key: str | None = None
        group: list[tuple[str, Member]] = []
        for member in members(file, found):
            folder, _, base = member.name.rpartition("/")
            stem, _, extension = base.partition(".")
            this = f"{folder}/{stem}" if folder else stem
            if this != key:
                close(key, group, found, prefer, texts, what)
                key, group = this, []
            group.append((extension.lower(), member))
        close(key, group, found, prefer, texts, what)
    return found


def close(key: str | None, group: list[tuple[str, Member]], found: Found, prefer: str, wanted: tuple[str, ...],
          what: str) -> None:
    """The members of one key as a sample, or counted."""
    if key is None:
        return
    pictures = [m for extension, m in group if extension in PICTURES]
    texts = {extension: m for extension, m in group if extension in wanted}
    for extension, member in group:
        if extension not in PICTURES and extension not in wanted:
            found.skip(f"member is neither picture nor {what}", member.name)
    if not pictures and not texts:
        return
    if not pictures:
        found.skip(f"{what} without a picture", key)
    elif len(pictures) > 1:
        found.skip("several pictures of one key", key)
    elif not texts:
        found.skip(f"picture without a {what}", key)
    else:
        kind = prefer if prefer in texts else next(iter(texts))
        if pictures[0].size > MAX_PICTURE:
            found.skip("picture is too many bytes", key)
        elif texts[kind].size > MAX_TEXT:
            found.skip(f"{what} is too many bytes", key)
        elif not pictures[0].size:
            found.skip("picture is empty", key)
        else:
            found.samples.append(Sample(key, pictures[0], texts[kind], kind))


def members(file: BinaryIO, found: Found) -> Iterator[Member]:
    """The plain files of an archive in order; all else is counted.  A damaged header ends it: nothing after it is sure."""
    end = os.fstat(file.fileno()).st_size
    at = 0
    told: dict[bytes, bytes] = {}                         # by headers before: the path and size of the next member
    name = Path(getattr(file, "name", "shard")).name
    while True:
        file.seek(at)
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            if block or at < end or not at:
                found.skip("shard is cut off", name)
            return
        if not any(block):
            return                                        # the archive's end mark
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError, OverflowError):
            found.skip("header is damaged: the rest of the shard is not read", f"{name}, byte {at}")
            return
        start = at + BLOCK
        size = int(told[b"size"]) if told.get(b"size", b"x").isdigit() else info.size
        plain = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
        kept = plain or info.type in WITH_BYTES or info.type not in tarfile.SUPPORTED_TYPES
        if size < 0:
            found.skip("header is damaged: the rest of the shard is not read", f"{name}, byte {at}")
            return
        at = start + (-(-size // BLOCK) * BLOCK if kept else 0)  # links, folders and devices have no bytes of their own
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            if size > MAX_NAME:
                found.skip("name is too long", f"{name}, byte {start - BLOCK}")
            else:
                file.seek(start)
                text = file.read(size)
                told |= {b"path": text.rstrip(b"\0")} if info.type == tarfile.GNUTYPE_LONGNAME else pax_fields(text)
            continue
        if info.type in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            continue
        path, told = told.get(b"path", b"").decode("utf-8", "surrogateescape") or info.name, {}
        if info.type == tarfile.DIRTYPE or (plain and path.endswith("/")):
            continue
        if not plain:
            found.skip(OTHER_KINDS.get(info.type, "member is of a kind that is not read"), path)
        elif path.startswith("/") or ".." in path.split("/") or "\0" in path or "\\" in path:
            found.skip("member's name leaves the shard", path)
        elif start + size > end:
            found.skip("shard is cut off", f"{name}, in {path}")
            return
        else:
            yield Member(path.removeprefix("./"), start, size)


def pax_fields(text: bytes) -> dict[bytes, bytes]:
    """The path and size of pax fields, "LENGTH KEY=VALUE\\n" one after the other, as far as they are sound."""
    at, found = 0, {}
    while at < len(text):
        length, space, _ = text[at : at + 20].partition(b" ")
        if not space or not length.isdigit() or not 0 < int(length) <= len(text) - at:
            break
        key, _, value = text[at + len(length) + 1 : at + int(length) - 1].partition(b"=")
        if key in (b"path", b"size"):
            found[key] = value
        at += int(length)
    return found
