"""Picture scenes: named pictures with transparency, pasted on generated grounds, with captions and exact masks.

The source is a folder or a zip of PNG files. It is not trusted: nothing is ever extracted to disk, sizes are limited
before anything is decompressed or decoded, and what cannot be used is skipped and counted in `report`.
"""

import hashlib
import io
import json
import os
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .example import Example, Region
from .images import verify
from .load_report import LoadReport, Unusable
from .locate import hub_blobs
from .scenes import SPLITS, Draws, background, caption, place

MAX_FILES = 20_000
MAX_BYTES = 8 * 2**20                                             # of one picture file
MAX_TOTAL = 2**30                                                 # of all of them, decompressed
MAX_SIDE = 2048
SIZES = (280, 330, 390, 450)                                      # longer side of a pasted picture, thousandths of the image


class PictureScenes:
    """A data set of `count` scenes, each with `objects` different pictures; ds[i] -> Example with one Region per picture.

    source    folder or zip of PNG files with transparency; a picture's id is its file name without .png
    names     jsonl with "id", "name" and, if pictures are held out, "split" ("train" or "heldout"); None: the file name with
              spaces for - and _ is the name, and one name in ten, chosen by its hash, is held out
    split     "train", "validation", "test": the same pictures, other scenes; "heldout": pictures that the others never show
    style     of captions: "full", "red apple left of grinning face and cat on the right", or "short"
    keep_opaque  also take pictures without any transparency (they are rectangles)

    A scene is a function of (seed, split, index), the options and the pictures. A pixel belongs to the topmost picture whose
    alpha is at least one half there. report: what was skipped and why. classes: the split's names.
    """

    def __init__(self, source: str | os.PathLike, names: str | os.PathLike | None = None, split: str = "train",
                 size: int = 64, count: int = 10_000, seed: int = 0, objects: tuple[int, int] = (1, 4), clutter: bool = True,
                 style: str = "full", captions: int = 1, keep_opaque: bool = False, strict: bool = False):
        if split not in ("train", "validation", "test", "heldout"):
            raise ValueError(f"split: expected train, validation, test or heldout, got {split!r}")
        if style not in ("full", "short"):
            raise ValueError(f"style: expected full or short, got {style!r}")
        if not 1 <= objects[0] <= objects[1] <= 4:
            raise ValueError(f"objects: expected a range within 1..4, got {objects}")
        for name, value, least in (("size", size, 16), ("count", count, 1), ("captions", captions, 1), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        self.source, self.split, self.size, self.count, self.seed = Path(source), split, size, count, seed
        self.objects, self.clutter, self.style, self.captions = tuple(objects), clutter, style, captions
        self.name = f"{self.source.stem}-{split}"
        self.report = LoadReport(str(source), strict, "docs/data.md")
        known = read_names(Path(names), self.report) if names is not None else None
        self.pictures: dict[str, np.ndarray] = {}                 # name -> (h,w,4) uint8, alpha premultiplied
        self._read(known, keep_opaque)
        self.classes = tuple(self.pictures)
        self.report.kept["pictures"] = len(self.classes)
        if len(self.classes) < objects[1]:
            raise ValueError(f"expected at least {objects[1]} pictures for the split {split}, got {len(self.classes)}\n"
                             f"{self.report}")

    def _read(self, known: dict[str, tuple[str, str]] | None, keep_opaque: bool) -> None:
        side, found, pictures = int(self.size * SIZES[-1] / 1000), set(), {}
        for file, read in _files(self.source, self.report):
            try:
                key = file.replace("\\", "/").split("/")[-1][:-4]
                if key in found:
                    raise Unusable("second picture of one id")
                if known is not None and key not in known:
                    raise Unusable("picture without a name")
                name, group = known[key] if known is not None else named(key)
                found.add(key)
                if not name:
                    raise Unusable("picture without a name")
                if (group == "heldout") != (self.split == "heldout"):
                    self.report.kept["pictures of the other splits"] += 1
                    continue
                if name in pictures:
                    raise Unusable("second picture of one name", name)
                pictures[name] = read_picture(read(), side, keep_opaque)
            except Unusable as error:
                self.report.skip(error.reason, file, error.note)
        for key in sorted(set(known or ()) - found):
            self.report.skip("name without a picture", key, fatal=False)      # a list of names may serve several sources
        self.pictures = dict(sorted(pictures.items()))            # not in the order of the zip

    def describe(self) -> dict:
        """Options and the report, JSON-able."""
        return {"name": self.name, "kind": "picture scenes", "source": str(self.source), "split": self.split, "size": self.size,
                "count": self.count, "seed": self.seed, "objects": list(self.objects), "clutter": self.clutter,
                "style": self.style, "captions": self.captions, "classes": len(self.classes), "report": self.report.as_dict()}

    def digest(self) -> str:
        """sha256 of every picture with its name; with describe() it decides every scene."""
        digest = hashlib.sha256()
        for name, picture in self.pictures.items():
            digest.update(json.dumps([name, picture.shape]).encode() + picture.tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        draws, size = Draws(self.seed, SPLITS[self.split], index), self.size
        n = draws.between(*self.objects)
        chosen: list[int] = []
        while len(chosen) < n:
            pick = draws.below(len(self.classes))
            if pick not in chosen:
                chosen.append(pick)
        names = [self.classes[pick] for pick in chosen]
        stamps = [scaled(self.pictures[name], max(2, size * SIZES[draws.below(len(SIZES))] // 1000)) for name in names]
        centres = place(draws, [max(stamp.shape[:2]) / 2 for stamp in stamps], size)
        image = background(draws, size, self.clutter)
        masks: list[np.ndarray] = []
        for stamp, (x, y) in zip(stamps, centres):
            height, width = stamp.shape[:2]
            top, left = max(0, int(y - height / 2)), max(0, int(x - width / 2))
            window = image[top:top + height, left:left + width]
            stamp = stamp[:window.shape[0], :window.shape[1]].astype(np.float32)
            window *= (255 - stamp[..., 3:]) / np.float32(255)
            window += stamp[..., :3]
            mask = np.zeros((size, size), bool)
            mask[top:top + height, left:left + width] = stamp[..., 3] >= 128
            for below in masks:
                below &= ~mask
            masks.append(mask)
        texts: list[str] = []
        spans: list[list] = [[] for _ in range(n)]
        for k in range(self.captions):
            text, at = caption(draws.shuffled(n), names, centres, size, self.style, "")
            texts.append(text)
            for i, (start, end) in at.items():
                spans[i].append((k, start, end))
        regions = tuple(Region(name, mask, tuple(span)) for name, mask, span in zip(names, masks, spans))
        image = np.clip(image + np.float32(0.5), 0, 255).astype(np.uint8)
        return Example(image, tuple(texts), regions, f"{self.name}-{self.seed}-{index}")


def named(key: str) -> tuple[str, str]:
    """Name and group of a picture that only has a file name."""
    name = " ".join(key.replace("-", " ").replace("_", " ").split())
    return name, "heldout" if int(hashlib.sha256(name.encode("utf-8", "replace")).hexdigest(), 16) % 10 == 0 else "train"


def read_names(path: Path, report: LoadReport) -> dict[str, tuple[str, str]]:
    """id -> (name, split) from jsonl; malformed lines are skipped and counted."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ValueError(f"names: {path} cannot be read ({error})") from error
    known: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            key, name, split = record["id"], record["name"], record.get("split", "train")
            name.encode()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            report.skip("line of names is not usable", f"line {number}", f"{type(error).__name__}: {error}")
            continue
        if not isinstance(key, str) or split not in ("train", "heldout") or key in known:
            report.skip("line of names is not usable", f"line {number}", f"id {key!r}, split {split!r}")
            continue
        known[key] = " ".join(name.split()), split
    return known


def _files(source: Path, report: LoadReport) -> Iterator[tuple]:
    """(name, read) of each PNG; read() gives its bytes, at most MAX_BYTES, or raises Unusable."""
    if source.is_dir():
        own = [place.resolve() for place in (source, *hub_blobs(source.absolute()))]
        files = sorted(file for file in source.iterdir() if not file.name.startswith("."))
        _limit(len(files), source)
        total = [0]
        for file in files:
            if file.suffix.lower() != ".png" or not file.is_file():
                report.skip("not a PNG file", file.name)
            elif not any(file.resolve().is_relative_to(place) for place in own):
                report.skip("unsafe name", file.name, "a link out of the folder")
            else:
                yield file.name, lambda file=file: _from_folder(file, total)
        return
    if not source.exists():
        raise ValueError(f"{source}: expected a folder or a zip file, found nothing there. See docs/data.md")
    try:
        archive = zipfile.ZipFile(source)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ValueError(f"{source}: expected a folder or a zip file ({type(error).__name__}: {error}). "
                         "See docs/data.md") from error
    with archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        _limit(len(members), source)
        total = [0]
        for member in members:
            parts = member.filename.replace("\\", "/").split("/")
            if ".." in parts or not parts[0] or ":" in parts[0]:
                report.skip("unsafe name", member.filename)
            elif not member.filename.lower().endswith(".png"):
                report.skip("not a PNG file", member.filename)
            elif member.flag_bits & 1:
                report.skip("encrypted", member.filename)
            else:
                yield member.filename, lambda member=member: _from_zip(archive, member, total)


def _limit(count: int, source: Path) -> None:
    if count > MAX_FILES:
        raise ValueError(f"{source}: expected at most {MAX_FILES} files, got {count}")


def _from_folder(file: Path, total: list[int]) -> bytes:
    try:
        with file.open("rb") as stream:
            return _bounded(stream, total)
    except OSError as error:
        raise Unusable("unreadable", str(error)) from error


def _from_zip(archive: zipfile.ZipFile, member: zipfile.ZipInfo, total: list[int]) -> bytes:
    if member.file_size > MAX_BYTES:
        raise Unusable("file too large", f"{member.file_size} bytes, at most {MAX_BYTES}")
    try:
        with archive.open(member) as stream:
            return _bounded(stream, total)
    except Unusable:
        raise
    except Exception as error:                                    # zlib, lzma, bad checksums, unknown methods, lying headers
        raise Unusable("damaged in the zip", f"{type(error).__name__}: {error}") from error


def _bounded(stream, total: list[int]) -> bytes:
    data = stream.read(MAX_BYTES + 1)
    total[0] += len(data)
    if len(data) > MAX_BYTES:
        raise Unusable("file too large", f"more than {MAX_BYTES} bytes")
    if total[0] > MAX_TOTAL:
        raise Unusable("past the limit for all pictures together", f"{MAX_TOTAL} bytes")
    return data


def read_picture(data: bytes, side: int, keep_opaque: bool) -> np.ndarray:
    """PNG bytes -> (h,w,4) uint8 with alpha premultiplied, cut to what is visible, the longer side at most `side`."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("PNG",)) as file:
                if max(file.size) > MAX_SIDE:
                    raise Unusable("picture too large", f"{file.width} x {file.height} pixels, at most {MAX_SIDE} a side")
                _checksums(data)
                image: Image.Image = file.convert("RGBA")
    except Unusable:
        raise
    except Image.UnidentifiedImageError as error:
        raise Unusable("not a PNG file", "by its content") from error
    except Image.DecompressionBombError as error:
        raise Unusable("picture too large", str(error)) from error
    except Exception as error:                                    # decoders raise nearly anything on damaged files
        raise Unusable("picture damaged", f"{type(error).__name__}: {error}") from error
    alpha = np.asarray(image)[..., 3]
    if alpha.min() == 255 and not keep_opaque:                    # its mask would be the whole rectangle
        raise Unusable("no transparency")
    rows, columns = np.flatnonzero((alpha >= 128).any(1)), np.flatnonzero((alpha >= 128).any(0))
    if not len(rows):
        raise Unusable("nothing visible")
    image = image.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)).convert("RGBa")
    return np.array(image) if max(image.size) <= side else scaled(np.array(image), side)


def _checksums(data: bytes) -> None:
    try:
        verify(data)
    except Unusable as error:
        raise Unusable("picture damaged", error.note) from error


def scaled(picture: np.ndarray, side: int) -> np.ndarray:
    """(h,w,4) premultiplied uint8 -> the same with its longer side `side`, antialiased."""
    from PIL import Image

    height, width = picture.shape[:2]
    longest = max(height, width)
    shape = (max(1, (width * side + longest // 2) // longest), max(1, (height * side + longest // 2) // longest))
    image = Image.frombytes("RGBa", (width, height), picture.tobytes())
    return np.array(image.resize(shape, Image.Resampling.BOX if side < longest else Image.Resampling.BILINEAR))
