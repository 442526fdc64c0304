"""Image-caption files in the formats people have (docs/data.md), read into pictures with their captions.

Nothing in them is trusted. Whatever cannot be used is skipped and counted with its reason, whatever is changed is counted
too, and `report` is the one summary of it. All images are decoded when the data is opened, so that what is broken shows
at once and training never stops at it; they are kept as resized uint8 up to a memory budget and decoded again beyond it.
"""

import hashlib
import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .example import Example
from .formats import read_rows
from .formats.discover import NAMES, discover
from .formats.records import ACCEPTED, SPLIT
from .images import MAX_PIXELS, load_image, read_image, resize
from .load_report import LoadReport, Unusable
from .locate import Tree, hub_blobs
from .names import same_name, valid

PAGE = "docs/data.md"


class Picture(NamedTuple):
    """file: what is read; name: below its folder; captions: all that were given for it."""

    file: Path
    name: str
    captions: tuple[str, ...]


class CaptionData:
    """Images with captions: ds[i] -> Example, the image (size, size, 3) uint8.   Made by open_captions()

    report   what was kept, converted and skipped
    texts    the captions of each image
    split    what was asked for or, of the file's own splits, chosen; "" where everything was read
    splits   the file's own splits, with the pictures in each
    """

    classes: tuple[str, ...] = ()

    def __init__(self, name: str, pictures: list[Picture], images: list[np.ndarray | None], report: LoadReport, size: int,
                 how: str, split: str = "", splits: dict[str, int] | None = None, max_pixels: int = MAX_PIXELS):
        self.name, self.names = name, [picture.name for picture in pictures]
        self.paths, self.texts = [picture.file for picture in pictures], [picture.captions for picture in pictures]
        self.images, self.report, self.size, self.how, self.split, self.splits = images, report, size, how, split, splits or {}
        self.max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        image = self.images[index]
        if image is None:
            image = load_image(self.paths[index], self.size, self.how, self.max_pixels)
        return Example(image, self.texts[index], (), Path(self.names[index]).name)

    def describe(self) -> dict:
        """Name, counts and the report, JSON-able."""
        return {"name": self.name, "kind": "image-caption files", "count": len(self), "captions": sum(map(len, self.texts)),
                "size": self.size, "resize": self.how, "split": self.split, "report": self.report.as_dict()}

    def digest(self) -> str:
        """sha256 of every image file, its name and its captions: any change of any of them changes it."""
        digest = hashlib.sha256()
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            for path, captions, content in zip(self.paths, self.texts, pool.map(_sha256, self.paths)):
                digest.update(json.dumps([path.name, captions, content]).encode())
        return digest.hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_captions(path: str | os.PathLike, images: str | os.PathLike | None = None, strict: bool = False,
                  size: int = 224, how: str = "squash", memory_mb: float = 1024, max_pixels: int = MAX_PIXELS,
                  progress: bool = True, split: str | None = None, share: float = 0.05,
                  own_split: str = "train") -> CaptionData:
    """Open a caption file, or the folder that holds one; docs/data.md shows an example of each format.

    .jsonl       one object per line: a picture ("image", "file_name", "path", ...) and a caption ("caption", "text", ...)
    .json        COCO's captions, Karpathy's splits, a list of such objects, or {name: captions}
    .csv, .tsv   also .txt and .token: a header that names the columns with the same words, or two columns without one
    a folder     captions.* or metadata.*, or pictures with a .txt or .json of the same name beside each (img2dataset)
    images       folder that names start from; default: images/ beside the file if there is one, else the file's folder
    strict       the first thing that would be skipped raises ValueError instead; conversions are counted only
    how          "squash" or "crop", see images.resize
    memory_mb    keep at most this many MiB of resized images
    split        "train", "validation" or "test" of the file's own splits; where it has none, "train" or "validation" by a hash
                 of the picture's name, so that more files move none and all captions of a picture stay together; "all"
    share        of the pictures that such a hash gives to validation
    own_split    which of the file's own splits is read where `split` is not given

    Captions of one image are collected from all its lines; runs of white space become one space. A name must stay in the
    folder, links followed; one that fits no file exactly is matched where one file alone fits.
    ValueError where nothing can be used, with the summary.
    """
    if not 0 <= memory_mb < float("inf"):
        raise ValueError(f"memory_mb: expected at least 0, got {memory_mb}. See {PAGE}")
    resize(np.zeros((1, 1, 3), np.uint8), size, how)              # a wrong size or how fails here, once
    listed = list_captions(path, images, strict, split, share, own_split)
    report = listed.report

    kept: list[Picture] = []
    kept_images: list[np.ndarray | None] = []
    free = int(memory_mb * 2**20)
    decoded = _decode([p.file for p in listed.pictures], size, how, max_pixels, progress)
    for picture, (image, changes) in zip(listed.pictures, decoded):
        if isinstance(changes, Unusable):
            report.skip(changes.reason, picture.name, changes.note)
            report.skip("captions of skipped images", picture.name, count=len(picture.captions))
            continue
        for change in changes:
            report.convert(change, picture.name)
        free -= image.nbytes
        kept.append(picture)
        kept_images.append(image if free >= 0 else None)
    report.kept["images"], report.kept["captions"] = len(kept), sum(len(picture.captions) for picture in kept)
    if not kept:
        raise ValueError(f"expected at least one image with a caption, found none\n{report}\n"
                         f"Accepted names: {ACCEPTED}. Formats: {PAGE}")
    return CaptionData(listed.name, kept, kept_images, report, size, how, listed.split, listed.splits, max_pixels)


class Listed(NamedTuple):
    """What a caption file names: the pictures that are there, none of them decoded yet; the rest as in CaptionData."""

    name: str
    pictures: list[Picture]
    report: LoadReport
    split: str
    splits: dict[str, int]


def list_captions(path: str | os.PathLike, images: str | os.PathLike | None = None, strict: bool = False,
                  split: str | None = None, share: float = 0.05, own_split: str = "train") -> Listed:
    """The pictures of a caption file, or of the folder that holds one, with their captions; options as of open_captions."""
    if not 0 < share < 1:
        raise ValueError(f"share: expected a number between 0 and 1, got {share}. See {PAGE}")
    if split is not None and split not in ("all", *SPLIT):
        raise ValueError(f"split: expected train, validation, test or all, got {split!r}. See {PAGE}")
    split = SPLIT.get(split, split) if split is not None else None
    given = Path(path)
    source = discover(given, split or own_split)
    file = source.file
    base = file if file.is_dir() else file.parent
    report = LoadReport(str(file), strict, PAGE)
    report.kept["images"] = report.kept["captions"] = 0
    if source.also:
        report.notes.append(f"there too, not read: {', '.join(source.also)}")
    named = [base.absolute(), *[given.absolute()] * given.is_dir()]
    tree = Tree(_roots(base, images, report), [*named, *hub_blobs(base.absolute())])
    texts, splits = _collect(file, tree, report, split or own_split, dict.fromkeys(source.splits, 0))
    pictures = _locate(texts, tree, report)
    chosen = split if split != "all" else None
    if splits:
        chosen = split or own_split
    elif chosen:
        pictures = _side(pictures, chosen, share, report, str(file))
    name = given.resolve().name if given.is_dir() else base.resolve().name if file.name in NAMES else file.stem
    return Listed(f"{name}-{chosen}" if chosen and chosen != "all" else name, pictures, report, chosen or "", splits)


def _roots(base: Path, images: str | os.PathLike | None, report: LoadReport) -> list[Path]:
    """Where names start: the folder that was given, or images/; then beside the file. COCO's annotations/ lie beside images."""
    if images is not None:
        if not Path(images).is_dir():
            raise ValueError(f"images: expected a folder, got {images}. See {PAGE}")
        return [Path(images), base]
    above = [base.parent] if base.name == "annotations" else []
    roots = []
    for place in (base, *above):
        own = place / "images"
        if own.is_dir() and own.resolve().is_relative_to(place.resolve()):
            roots.append(own)
        elif own.is_dir():
            report.notes.append(f"{own} is a link that leaves the folder, not followed; name it with images= if it is meant")
        roots.append(place)
    return roots


def _collect(file: Path, tree: Tree, report: LoadReport, wanted: str,
             splits: dict[str, int]) -> tuple[dict[str, list[str]], dict[str, int]]:
    """The captions of each image name, in order of appearance, and the rows in each of the file's own splits, if it has any.

    Names without a usable caption are counted and left out.
    """
    rows = list(read_rows(file, tree, report))
    if not splits and any(row.split and row.split.strip().lower() in SPLIT for row in rows):
        of = [SPLIT.get((row.split or "").strip().lower(), "none") for row in rows]
        splits = dict(Counter(of))
        if wanted not in ("all", *splits):
            raise ValueError(f"{file}: split: expected one of {', '.join(splits)} or all, the splits that it has, got {wanted}."
                             f" See {PAGE}")
        if wanted != "all":
            other = sum(len(row.captions) for row, split in zip(rows, of) if split != wanted)
            rows = [row for row, split in zip(rows, of) if split == wanted]
            report.kept["captions of other splits"] += other
        found = ", ".join(f"{split} {n}" for split, n in splits.items())
        report.notes.append(f"splits of its own: {found}; read: {wanted}")
    texts: dict[str, list[str]] = {}
    for row in rows:
        name = str(row.name) if isinstance(row.name, int) and not isinstance(row.name, bool) else row.name
        if not isinstance(name, str) or not name.strip():
            report.skip("image is not named by text", row.where)
            continue
        kept = texts.setdefault(name.strip(), [])
        for caption in row.captions:
            if not isinstance(caption, str):
                report.skip("caption is not text", f"{row.where}, {name}")
            elif not valid(caption):
                report.skip("caption is not valid UTF-8", f"{row.where}, {name}")
            elif not caption.strip():
                report.skip("caption empty", f"{row.where}, {name}")
            else:
                kept.append(" ".join(caption.split()))
    for name in [name for name, kept in texts.items() if not kept]:
        report.skip("image without a usable caption", name)
        del texts[name]
    return texts, splits


def _locate(texts: dict[str, list[str]], tree: Tree, report: LoadReport) -> list[Picture]:
    """Names to files; names of the same file are put together, but not two different ones of which one was a guess."""
    found: dict[Path, list[tuple]] = {}
    for name in texts:
        try:
            match = tree.find(name)
        except Unusable as error:
            report.skip(error.reason, name, error.note)
            report.skip("captions of skipped images", name, count=len(texts[name]))
        else:
            found.setdefault(match.file, []).append((name, match))
    pictures = []
    for file, uses in found.items():
        sure = [use for use in uses if use[1].sure]
        if not sure and len({same_name(name) for name, _ in uses}) == 1:
            sure = uses
        for name, match in uses:
            if (name, match) not in sure:
                report.skip("several names fit one file", name, match.name)
                report.skip("captions of skipped images", name, count=len(texts[name]))
            elif match.change:
                report.convert(match.change, name)
        if sure:
            pictures.append(Picture(file, sure[0][1].name, tuple(text for name, _ in sure for text in texts[name])))
    return pictures


def _side(pictures: list[Picture], split: str, share: float, report: LoadReport, source: str) -> list[Picture]:
    """The pictures of one side of a split by hash."""
    if split not in ("train", "validation"):
        raise ValueError(f"{source}: split: expected train or validation, by a hash of the picture's name, as it has no splits "
                         f"of its own; got {split}. See {PAGE}")
    mine = [picture for picture in pictures if in_validation(picture.name, share) == (split == "validation")]
    report.kept["images of the other split"] = len(pictures) - len(mine)
    report.notes.append(f"split by a hash of each picture's name, {share:.1%} to validation; read: {split}")
    if pictures and not mine:
        lowest = math.floor(100 * min(drawn(picture.name) for picture in pictures) + 1) / 100
        other = f"some do with &share={lowest:.2g}" if split == "validation" and lowest < 1 else "choose another share"
        raise ValueError(f"{source}: split={split}: none of its {len(pictures)} pictures falls there at share={share}; "
                         f"{other}, or leave split= out, which keeps none apart. See {PAGE}")
    return mine


def in_validation(name: str, share: float) -> bool:
    """Whether a picture belongs to validation, by its name below the folder alone."""
    return drawn(name) < share


def drawn(name: str) -> float:
    """A number in [0, 1) that is the name's hash."""
    digest = hashlib.sha256(same_name(name).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _decode(files: list[Path], size: int, how: str, max_pixels: int, progress: bool) -> Iterator[tuple]:
    """(image, changes) of each file in order, or (None, Unusable)."""
    from tqdm import tqdm

    def one(file: Path):
        try:
            return read_image(file, size, how, max_pixels)
        except Unusable as error:
            return None, error

    bar = tqdm(total=len(files), desc="reading images", unit="image", disable=None if progress else True, delay=1)
    with bar, ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        part = max(1, min(64, 2**28 // (3 * size * size)))        # in parts, so that strict mode can stop early
        for start in range(0, len(files), part):
            with warnings.catch_warnings():                       # Pillow's hints about bombs and odd metadata: checked here
                warnings.simplefilter("ignore")
                done = list(pool.map(one, files[start:start + part]))
            bar.update(len(done))
            yield from done
