"""Image-caption files: images/ with captions.jsonl, COCO caption JSON, CSV and TSV.

Nothing in them is trusted. Whatever cannot be used is skipped and counted with its reason, whatever is changed is counted
too, and `report` is the one summary of it. All images are decoded when the data is opened, so that what is broken shows
at once and training never stops at it; they are kept as resized uint8 up to a memory budget and decoded again beyond it.
"""

import csv
import json
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PureWindowsPath

import numpy as np

from .example import Example
from .images import MAX_PIXELS, load_image, read_image, resize
from .load_report import LoadReport, Unusable

IMAGE_FIELDS = ("image", "file", "path", "file_name", "filename")
CAPTION_FIELDS = ("caption", "captions")
DEFAULTS = ("captions.jsonl", "captions.json", "captions.csv", "captions.tsv")


class CaptionData:
    """Images with captions: ds[i] -> Example, the image (size, size, 3) uint8.   Made by open_captions()

    report   what was kept, converted and skipped
    texts    the captions of each image
    """

    classes: tuple[str, ...] = ()

    def __init__(self, name: str, paths: list[Path], texts: list[tuple[str, ...]], images: list[np.ndarray | None],
                 report: LoadReport, size: int, how: str):
        self.name, self.paths, self.texts, self.images = name, paths, texts, images
        self.report, self.size, self.how = report, size, how

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        image = self.images[index]
        if image is None:
            image = load_image(self.paths[index], self.size, self.how)
        return Example(image, self.texts[index], (), self.paths[index].name)

    def describe(self) -> dict:
        """Name, counts and the report, JSON-able."""
        return {"name": self.name, "kind": "image-caption files", "count": len(self), "captions": sum(map(len, self.texts)),
                "size": self.size, "resize": self.how, "report": self.report.as_dict()}


def open_captions(path: str | os.PathLike, images: str | os.PathLike | None = None, strict: bool = False,
                  size: int = 224, how: str = "squash", memory_mb: float = 1024, max_pixels: int = MAX_PIXELS,
                  progress: bool = True) -> CaptionData:
    """Open a folder with captions.jsonl (or .json, .csv, .tsv), or one such file.

    .jsonl       one object per line: "image", "file" or "path", and "caption" (text) or "captions" (list of texts)
    .json        COCO: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}; or a list of such objects
    .csv, .tsv   path and caption; the first line may name its columns with the words above; TSV has no quoting
    images       folder that paths start from; default: images/ beside the file if there is one, else the file's folder
    strict       the first thing that would be skipped raises ValueError instead; conversions are counted only
    how          "squash" or "crop", see images.resize
    memory_mb    keep at most this many MiB of resized images

    Captions of one image are collected from all its lines; runs of white space become one space. Files are UTF-8. A path
    must stay in the folder, links followed.
    ValueError where nothing can be used, with the summary.
    """
    path = _find(Path(path))
    base = path.parent
    root = Path(images) if images is not None else base / "images" if (base / "images").is_dir() else base
    if not root.is_dir():
        raise ValueError(f"images: expected a folder, got {root}")
    resize(np.zeros((1, 1, 3), np.uint8), size, how)              # a wrong size or how fails here, once
    report = LoadReport(str(path), strict)
    texts = _collect(path, report)
    files = _locate(texts, [root, base], report)

    kept_paths, kept_texts, kept_images, free = [], [], [], int(memory_mb * 2**20)
    for (file, captions), (image, changes) in zip(files.items(), _decode(list(files), size, how, max_pixels, progress)):
        name = file.name
        if isinstance(changes, Unusable):
            report.skip(changes.reason, name, changes.note)
            report.skip("captions of skipped images", name, count=len(captions))
            continue
        for change in changes:
            report.convert(change, name)
        free -= image.nbytes
        kept_paths.append(file)
        kept_texts.append(tuple(captions))
        kept_images.append(image if free >= 0 else None)
    report.kept["images"], report.kept["captions"] = len(kept_paths), sum(map(len, kept_texts))
    if not kept_paths:
        raise ValueError(f"expected at least one image with a caption, found none\n{report}")
    name = base.resolve().name if path.name in DEFAULTS else path.stem
    return CaptionData(name, kept_paths, kept_texts, kept_images, report, size, how)


def _find(path: Path) -> Path:
    if path.is_dir():
        found = [path / name for name in DEFAULTS if (path / name).is_file()]
        if not found:
            raise ValueError(f"{path}: expected one of {', '.join(DEFAULTS)} in it, found none")
        return found[0]
    if not path.is_file():
        raise ValueError(f"{path}: expected a folder or a file, found nothing there")
    if path.suffix.lower() not in (".jsonl", ".json", ".csv", ".tsv"):
        raise ValueError(f"{path}: expected .jsonl, .json, .csv or .tsv, got {path.suffix!r}")
    return path


def _collect(path: Path, report: LoadReport) -> dict[str, list[str]]:
    """The captions of each image name, in order of appearance; names without a usable caption are counted and left out."""
    read = {".jsonl": _jsonl, ".json": _json, ".csv": _table, ".tsv": _table}[path.suffix.lower()]
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    texts: dict[str, list[str]] = {}
    for where, name, captions in read(path, data, report):
        if not isinstance(name, str) or not name.strip():
            report.skip("image is not named by text", where)
            continue
        kept = texts.setdefault(name.strip(), [])
        captions = captions if isinstance(captions, list) else [captions]
        for caption in captions:
            if not isinstance(caption, str):
                report.skip("caption is not text", f"{where}, {name}")
            elif not _valid(caption):
                report.skip("caption is not valid UTF-8", f"{where}, {name}")
            elif not caption.strip():
                report.skip("caption empty", f"{where}, {name}")
            else:
                kept.append(" ".join(caption.split()))
    for name in [name for name, kept in texts.items() if not kept]:
        report.skip("image without a usable caption", name)
        del texts[name]
    return texts


def _valid(text: str) -> bool:
    """No lone surrogates: they stand for bytes that are not UTF-8, or come from broken JSON escapes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _jsonl(path: Path, data: str, report: LoadReport) -> Iterator[tuple]:
    for number, line in enumerate(data.split("\n"), 1):
        where = f"line {number}"
        if not line.strip():
            continue
        if not _valid(line):
            report.skip("line is not UTF-8", where)
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            report.skip("line is not JSON", where, str(error))
            continue
        yield from _record(record, where, report)


def _record(record, where: str, report: LoadReport) -> Iterator[tuple]:
    if isinstance(record, dict):
        names = [record[f] for f in IMAGE_FIELDS if f in record]
        values = [record[f] for f in CAPTION_FIELDS if f in record]
        if names and values:
            yield where, names[0], [c for v in values for c in (v if isinstance(v, list) else [v])]
            return
    report.skip("record without an image and a caption", where)


def _json(path: Path, data: str, report: LoadReport) -> Iterator[tuple]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected COCO captions, got no JSON ({type(error).__name__}: {error})") from error
    if isinstance(content, list):
        for number, record in enumerate(content):
            yield from _record(record, f"record {number}", report)
        return
    images, notes = (content.get(part) if isinstance(content, dict) else None for part in ("images", "annotations"))
    if not isinstance(images, list) or not isinstance(notes, list):
        raise ValueError(f'{path}: expected COCO captions with the lists "images" and "annotations", or a list of records')
    captions: dict[int | str, list] = {}
    for number, note in enumerate(notes):
        if isinstance(note, dict) and isinstance(note.get("image_id"), (int, str)) and "caption" in note:
            captions.setdefault(note["image_id"], []).append(note["caption"])
        else:
            report.skip("record without an image and a caption", f"annotation {number}")
    for number, image in enumerate(images):
        if isinstance(image, dict) and isinstance(image.get("id"), (int, str)) and "file_name" in image:
            yield f"image {image['id']}", image["file_name"], captions.pop(image["id"], [])
        else:
            report.skip("record without an id and a file_name", f"image record {number}")
    for image_id, lost in captions.items():
        report.skip("caption of an image that is not listed", f"image {image_id}", count=len(lost))


def _table(path: Path, data: str, report: LoadReport) -> Iterator[tuple]:
    tabs = path.suffix.lower() == ".tsv"
    lines = [line + "\n" for line in data.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    reader = csv.reader(lines, **style)
    columns: tuple = (0, 1)
    first = True
    while True:
        before = reader.line_num
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            report.skip("malformed row", f"lines {before + 1} to {reader.line_num}", str(error))
            continue
        where = f"line {before + 1}"
        if not row or not any(cell.strip() for cell in row):
            continue
        if first:
            first = False
            names = [cell.strip().lower() for cell in row]
            found = [next((names.index(f) for f in fields if f in names), None) for fields in (IMAGE_FIELDS, CAPTION_FIELDS)]
            if None not in found:
                columns, width = (found[0], found[1]), len(row)
                continue
            width = 2
        if not all(map(_valid, row)):
            report.skip("line is not UTF-8", where)
        elif len(row) != width:
            report.skip("wrong number of columns", where, f"expected {width}, got {len(row)}; quote captions that hold commas")
        else:
            yield where, row[columns[0]], row[columns[1]]


def _locate(texts: dict[str, list[str]], roots: list[Path], report: LoadReport) -> dict[Path, list[str]]:
    """Image names to files inside the folders; names of the same file are put together."""
    files: dict[Path, list[str]] = {}
    folders = [root.resolve() for root in roots]
    for name, captions in texts.items():
        try:
            files.setdefault(_inside(name, folders), []).extend(captions)
        except Unusable as error:
            report.skip(error.reason, name, error.note)
            report.skip("captions of skipped images", name, count=len(captions))
    return files


def _inside(name: str, folders: list[Path]) -> Path:
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or name.startswith(("/", "\\", "~")) or PureWindowsPath(name).drive:
        raise Unusable("path leaves the folder")
    for folder in folders:
        try:
            file = (folder / name).resolve(strict=True)
        except (OSError, RuntimeError, ValueError):               # absent, a loop of links, too long
            continue
        if not file.is_relative_to(folder):
            raise Unusable("path leaves the folder", "by a link")
        return file
    raise Unusable("image missing")


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
        for start in range(0, len(files), 64):                    # in parts, so that strict mode can stop early
            with warnings.catch_warnings():                       # Pillow's hints about bombs and odd metadata: checked here
                warnings.simplefilter("ignore")
                done = list(pool.map(one, files[start:start + 64]))
            bar.update(len(done))
            yield from done
