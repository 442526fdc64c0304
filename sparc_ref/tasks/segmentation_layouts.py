"""Labelled pictures as people have them: Pascal VOC, Pascal Context, COCO's instances, any two folders, pasted scenes.

Every opener gives Labelled. What it leaves out is counted in its report; a picture that turns out unusable when it is read
raises Unusable, so that one bad file does not end an hour's measurement.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparc_ref.data import PictureScenes
from sparc_ref.data.formats import decode
from sparc_ref.data.formats.annotations import parse
from sparc_ref.data.images import read_image, resize
from sparc_ref.data.load_report import LoadReport, Unusable
from sparc_ref.data.locate import Tree
from sparc_ref.data.masks import check_area, picture_size, read_labels
from sparc_ref.data.masks import decode as decode_mask
from sparc_ref.data.names import is_picture
from sparc_ref.run.measure import ignore_label, truth_of

VOC = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table", "dog", "horse",
       "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor")
CONTEXT = ("aeroplane", "bag", "bed", "bedclothes", "bench", "bicycle", "bird", "boat", "book", "bottle", "building", "bus",
           "cabinet", "car", "cat", "ceiling", "chair", "cloth", "computer", "cow", "cup", "curtain", "dog", "door", "fence",
           "floor", "flower", "food", "grass", "ground", "horse", "keyboard", "light", "motorbike", "mountain", "mouse",
           "person", "plate", "platform", "potted plant", "road", "rock", "sheep", "shelves", "sidewalk", "sign", "sky", "snow",
           "sofa", "table", "track", "train", "tree", "truck", "tv monitor", "wall", "water", "window", "wood")
PAGE = "docs/tasks/segmentation.md"


@dataclass(frozen=True)
class Labelled:
    """Pictures whose pixels have labels: 0..K-1 the classes, -1 background, `ignore` not counted."""

    name: str
    classes: tuple[str, ...]
    keys: tuple[str, ...]                              # a picture's name in messages
    picture: Callable[[int, int], np.ndarray]          # number, side -> (side,side,3) uint8; Unusable
    truth: Callable[[int], np.ndarray]                 # number -> (H,W) int; Unusable
    report: LoadReport

    @property
    def ignore(self) -> int:
        return ignore_label(len(self.classes) + 1)                # + 1: the background may become a class


def voc(path: Path, *, split: str = "val") -> Labelled:
    """VOCdevkit/VOC2012: JPEGImages/, SegmentationClass/, ImageSets/Segmentation/<split>.txt; 0 background, 255 ignored."""
    root, ids = devkit(path, ("VOC2012", "VOCdevkit/VOC2012"), [f"ImageSets/Segmentation/{split}.txt"])
    return by_list(named("VOC 2012", split), root, ids, "SegmentationClass", VOC)


def context(path: Path, *, split: str = "val", masks: str = "SegmentationClassContext") -> Labelled:
    """VOCdevkit/VOC2010 with the masks of 59 classes as PNGs: 0 background, 1..59 in alphabetical order, or as 59_labels.txt
    beside them says; the pictures of ImageSets/SegmentationContext/<split>.txt or ImageSets/Main/<split>.txt."""
    lists = [f"ImageSets/{folder}/{split}.txt" for folder in ("SegmentationContext", "Main")]
    root, ids = devkit(path, ("VOC2010", "VOCdevkit/VOC2010"), lists)
    if not (root / masks).is_dir():
        raise ValueError(f"{root / masks}: expected the folder of masks as PNGs, found none; trainval_merged.json is not read: "
                         "mmsegmentation's pascal_context.py writes PNGs from it; or name them with masks=FOLDER")
    given = [p for p in (root / masks / "59_labels.txt", root / "59_labels.txt") if p.is_file()]
    return by_list(named("Pascal Context", split), root, ids, masks, CONTEXT, read_names(given[0], None) if given else None)


def named(name: str, split: str) -> str:
    """What tables call it: the paper's columns are of val."""
    return name if split == "val" else f"{name} {split}"


def devkit(path: Path, below: Sequence[str], lists: Sequence[str]) -> tuple[Path, list[str]]:
    """The folder of a VOC devkit and the ids of one of its lists."""
    for root in (path, *(path / name for name in below)):
        for name in lists:
            if (root / name).is_file():
                text = decode(root / name, LoadReport(str(root / name)))
                ids = list(dict.fromkeys(line.split()[0] for line in text.splitlines() if line.strip()))
                if not ids:
                    raise ValueError(f"{root / name}: expected a picture's id a line, found none")
                return root, ids
    found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) if path.is_dir() else "no such folder"
    raise ValueError(f"{path}: expected {' or '.join(lists)} there or in {' or '.join(below)}, the list of pictures; found "
                     f"{found or 'an empty folder'}. See {PAGE}")


def by_list(name: str, root: Path, ids: list[str], masks: str, classes: tuple[str, ...], labels: dict[int, str] | None = None):
    report = LoadReport(str(root), page=PAGE)
    photos, planes = Tree([root / "JPEGImages"]), Tree([root / masks])
    pairs = []
    for key in ids:
        try:
            pairs.append((key, photos.find(f"{key}.jpg").file, find(planes, f"{key}.png", "mask missing")))
        except Unusable as error:
            report.skip(error.reason, key, error.note)
    names = labels or dict(enumerate(classes, 1))
    return of_files(name, names, pairs, report, 0, 255)


def find(tree: Tree, name: str, missing: str) -> Path:
    try:
        return tree.find(name).file
    except Unusable as error:
        raise Unusable(missing if error.reason == "image missing" else error.reason, error.note) from None


def folder(path: Path, *, images: str = "images", masks: str = "masks", names: str = "classes.json", of: str = "",
           background_label: int = 0, ignore_label: int = 255) -> Labelled:
    """Pictures and PNGs of the same name in two folders below path, or deeper; read_names says what a class list may be.

    of: which list of a file that holds several. background_label: not a class; -1: every label is one.
    """
    report = LoadReport(str(path), page=PAGE)
    for each in (images, masks):
        if not (path / each).is_dir():
            found = ", ".join(sorted(p.name for p in path.iterdir() if p.is_dir())[:8]) if path.is_dir() else "no such folder"
            raise ValueError(f"{path / each}: expected a folder, there are {found or 'none'}; name it with images= or masks=")
    known = read_names(path / names, of or None)
    tree = Tree([path / images, path / masks], [path])
    held: dict[str, list[Path]] = {}
    for file in sorted((path / images).rglob("*")):
        if is_picture(file.name):
            held.setdefault(file.relative_to(path / images).with_suffix("").as_posix(), []).append(file)
    planes = {file.relative_to(path / masks).with_suffix("").as_posix(): file for file in sorted((path / masks).rglob("*.png"))}
    pairs = []
    for key, files in held.items():
        try:
            if len(files) > 1:
                raise Unusable("several pictures of one name", ", ".join(file.name for file in files))
            if key not in planes:
                raise Unusable("mask missing")
            pairs.append((key, tree.inside(files[0]), tree.inside(planes[key])))
        except Unusable as error:
            report.skip(error.reason, key, error.note)
    for key in sorted(planes.keys() - held.keys()):
        report.skip("mask without a picture", key)
    return of_files(path.resolve().name, known, pairs, report, background_label, ignore_label)


def read_names(file: Path, of: str | None) -> dict[int, str]:
    """label -> name: JSON {"1": "cat"}, [{"index" or "id": 1, "name": "cat"}] or ["cat", "dog"], from 0 on; text "1: cat" or a
    name a line, from 0 on; a JSON object of several such lists, of which `of` names one.   ValueError"""
    wanted = 'expected {"1": "cat", ...}, [{"index": 1, "name": "cat"}, ...], ["cat", ...] or lines such as "1: cat"'
    if not file.is_file():
        raise ValueError(f"{file}: expected the list of classes, found no file; name one with names=FILE. {wanted}")
    text = decode(file, LoadReport(str(file)))
    try:
        found: Any = parse(text) if file.suffix.lower() == ".json" else [s.strip() for s in text.splitlines() if s.strip()]
        if isinstance(found, dict) and any(isinstance(x, (dict, list)) for x in found.values()):
            lists = [key for key, x in found.items() if isinstance(x, (dict, list))]
            if (of or (lists[0] if len(lists) == 1 else None)) not in lists:
                raise ValueError(f"expected of= one of {', '.join(lists)}, the lists that it has, got {of}")
            found = found[of or lists[0]]
        if isinstance(found, dict):
            names = {int(key): name for key, name in found.items()}
        elif all(isinstance(x, dict) for x in found):
            names = {int(x["index"] if "index" in x else x["id"]): x["name"] for x in found}
        elif all(isinstance(x, str) and x.partition(":")[0].strip().isdecimal() and ":" in x for x in found):
            names = {int(x.partition(":")[0]): x.partition(":")[2].strip() for x in found}
        else:
            names = dict(enumerate(found))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{file}: {wanted}; {type(error).__name__}: {error}") from error
    if not names or not all(isinstance(name, str) and name.strip() for name in names.values()):
        raise ValueError(f"{file}: {wanted}; got {str(found)[:60]!r}")
    return names


def of_files(name: str, names: dict[int, str], pairs, report: LoadReport, background: int, ignore: int) -> Labelled:
    """From files: names by label, (key, picture, mask) each."""
    labels = [label for label in sorted(names) if label not in (background, ignore)]
    classes = tuple(names[label].strip() for label in labels)
    if not classes or len(set(classes)) < len(classes) or not 0 <= labels[0] <= labels[-1] < 2**16:
        raise ValueError(f"{report.source}: expected classes of different names with labels 0..65535, got {str(names)[:80]}")
    if not pairs:
        raise ValueError(f"expected pictures with a mask each, found none\n{report}")
    report.kept["pictures"] = len(pairs)
    keys, photos, planes = zip(*pairs)
    data = Labelled(name, classes, keys, lambda i, size: read_image(photos[i], size)[0], lambda i: truth(i), report)
    number = np.full(2**16, -2, np.int64)
    number[labels] = np.arange(len(labels))
    if background >= 0:
        number[background] = -1
    if ignore >= 0:
        number[ignore] = data.ignore

    def truth(i):
        raw = read_labels(planes[i])
        size = picture_size(photos[i])
        if raw.shape != size:
            raise Unusable("mask and picture of different sizes", "mask {} x {}, picture {} x {}".format(*raw.shape[::-1],
                                                                                                         *size[::-1]))
        labelled = number[raw]
        if np.any(labelled == -2):
            unknown = np.unique(raw[labelled == -2])
            raise Unusable("label outside the class list", f"{', '.join(map(str, unknown[:5]))} of {len(classes)} classes")
        return labelled

    return data


def coco(path: Path, *, images: str = "") -> Labelled:
    """COCO's instances: a JSON file, or the folder that holds one; small objects lie on large ones, crowds are not counted.

    images: the folder that file names start from; else images/, or the one that the JSON's name ends with, beside it or above.
    A picture with an object that has no mask, or a damaged one, is left out. ValueError: no file of instances.
    """
    file = instances_file(path)
    content = parse_instances(file)
    report = LoadReport(str(file), page=PAGE)
    roots = [Path(images)] if images else [place / name for place in (file.parent, file.parent.parent)
                                           for name in ("images", file.stem.rpartition("_")[2])]
    roots = [root for root in roots if root.is_dir()] or [file.parent]
    tree = Tree(roots, [file.parent])
    categories = sorted((c["id"], c["name"]) for c in content["categories"])
    number = {key: k for k, (key, _) in enumerate(categories)}
    classes = tuple(name for _, name in categories)
    if not classes or len(set(classes)) < len(classes):
        raise ValueError(f"{file}: expected categories of different names, got {str(classes)[:80]}")
    objects: dict[Any, list[dict]] = {}
    for note in content["annotations"]:
        objects.setdefault(note.get("image_id"), []).append(note)
    kept: list[tuple[str, Path, tuple[int, int], list[dict]]] = []
    for image in content["images"]:
        key = image["file_name"]
        notes = objects.pop(image["id"], [])
        try:
            check_area(image["width"], image["height"])
            if any("segmentation" not in note for note in notes):
                raise Unusable("object without a mask")
            if unknown := [note.get("category_id") for note in notes if note.get("category_id") not in number]:
                raise Unusable("object of no category", str(unknown[0]))
            kept.append((key, tree.find(key).file, (image["height"], image["width"]), notes))
        except Unusable as error:
            report.skip(error.reason, key, error.note)
    for key, notes in objects.items():
        report.skip("objects of a picture that is not listed", str(key), count=len(notes))
    if not kept:
        raise ValueError(f"expected pictures with masks, found none\n{report}")
    report.kept["pictures"] = len(kept)

    def truth(i):
        _, photo, size, notes = kept[i]
        if picture_size(photo) != size:
            raise Unusable("mask and picture of different sizes", "JSON {1} x {0}, picture {3} x {2}".format(
                *size, *picture_size(photo)))
        labelled = np.full(size, -1, np.int64)
        inside = [(note, shape(note, size)) for note in notes]
        for note, mask in sorted(inside, key=lambda pair: (not pair[0].get("iscrowd"), -np.count_nonzero(pair[1]))):
            labelled[mask] = data.ignore if note.get("iscrowd") else number[note["category_id"]]
        return labelled

    name = file.stem.removeprefix("instances").strip("_") or file.parent.resolve().name
    data = Labelled(f"COCO {name}" if name != "coco" else "COCO", classes, tuple(k[0] for k in kept),
                    lambda i, side: read_image(kept[i][1], side)[0], truth, report)
    return data


def shape(note: dict, size: tuple[int, int]) -> np.ndarray:
    try:
        return decode_mask(note["segmentation"], *size)
    except ValueError as error:
        raise Unusable("object whose mask cannot be read", f"annotation {note.get('id')}: {error}") from error


def instances_file(path: Path) -> Path:
    if path.is_file():
        return path
    found = [p for place in (path, path / "annotations") for p in sorted(place.glob("instances*.json"))]
    if len(found) != 1:
        several = f"{len(found)}: {', '.join(p.name for p in found[:4])}; name one of them" if found else "none"
        raise ValueError(f"{path}: expected one instances*.json there or in annotations/, found {several}. See {PAGE}")
    return found[0]


def parse_instances(file: Path) -> dict:
    """The JSON, with what is read of it checked.   ValueError"""
    wanted = {"images": ("id", "file_name", "width", "height"), "annotations": ("image_id", "category_id"),
              "categories": ("id", "name")}
    try:
        content = parse(decode(file, LoadReport(str(file))))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: expected COCO's instances, got no JSON ({type(error).__name__}: {error})") from error
    for part, fields in wanted.items():
        rows = content.get(part) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise ValueError(f"{file}: expected COCO's instances, with the lists {', '.join(wanted)}; it has no list {part}")
        for n, row in enumerate(rows):
            if not isinstance(row, dict) or not all(usable(f, row.get(f)) for f in fields):
                raise ValueError(f"{file}: {part}, entry {n}: expected {', '.join(fields)}, got {str(row)[:80]}")
    return content


def usable(field: str, x: Any) -> bool:
    """Whether a value may stand under one of the names that are read."""
    if field in ("file_name", "name"):
        return isinstance(x, str)
    return type(x) is int and (x > 0 or field not in ("width", "height"))


def scenes(path: Path, *, names: str | None = None, split: str = "test", count: int = 256, pixels: int = 64,
           objects: tuple[int, int] = (1, 4), seed: int = 0) -> Labelled:
    """Named pictures with transparency pasted on generated grounds, masks exact: data.PictureScenes, `pixels` a side."""
    made = PictureScenes(path, names, split, pixels, count, seed, objects)
    report = made.report
    data = Labelled(f"scenes of {made.name}", made.classes, tuple(str(i) for i in range(count)),
                    lambda i, size: resize(made[i].image, size), lambda i: truth_of(made[i], made.classes), report)
    return data


KINDS: dict[str, Callable[..., Any]] = {"voc": voc, "context": context, "coco": coco, "folder": folder, "scenes": scenes}
