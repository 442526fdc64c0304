"""Pictures with named boxes, as data sets come: COCO's JSON, LVIS's, Objects365's, Visual Genome's; scenes with exact masks.

    coco:coco?annotations=annotations/instances_val2017.json     lvis:lvis_v1_val.json?images=coco
    objects365:objects365?annotations=zhiyuan_objv2_train.json   vg:visual_genome        scenes:emoji.zip?names=emoji.jsonl

Classes are numbered from 0 in the order of the file's ids, which `ids` keeps.  Boxes are x, y, w, h in pixels of the picture as
it is stored; a picture that its EXIF turns is not turned.  What cannot be used is left out and counted in `report`.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from sparc_ref.data import DrawnScenes, PictureScenes
from sparc_ref.data.images import read_image, resize
from sparc_ref.data.load_report import LoadReport, Unusable
from sparc_ref.data.locate import Tree
from sparc_ref.data.names import is_url

MAX_JSON = 4 * 2**30                                      # bytes; the largest published file, Objects365's, has 3.6e9
MAX_SIDE = 65_500                                         # of a picture, pixels: JPEG's own limit
PUBLISHED = {"instances_val2017": "COCO", "lvis_v1_val": "LVIS"}  # what the paper measures on
PAGE = "docs/tasks/detection.md"


@dataclass(frozen=True, eq=False)
class Annotated:
    """One picture's boxes: box (M,4) x, y, w, h, label (M,), area (M,), crowd (M,) bool; size (width, height), pixels."""

    key: str
    source: str | int                                     # the picture's file name, or which scene it is
    size: tuple[int, int]
    box: np.ndarray
    label: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    negative: tuple[int, ...] = ()                        # classes that were looked for and are not there
    incomplete: tuple[int, ...] = ()                      # classes of which not every object has a box


@dataclass(frozen=True, eq=False)
class BoxData:
    """A data set of annotated pictures.

    classes   the names as the file has them; ids: the file's number of each
    frequency of each class "r", "c" or "f" where the data set is federated (LVIS), else empty
    open      the pixels of a picture: open(source, size) -> (h,w,3) uint8, no side longer than `size`; Unusable
    """

    name: str
    classes: tuple[str, ...]
    ids: tuple[int, ...]
    pictures: tuple[Annotated, ...]
    open: Callable[[Any, int], np.ndarray]
    report: LoadReport
    frequency: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, index: int, size: int) -> tuple[np.ndarray, Annotated]:
        """A picture, no side longer than `size`, and its boxes.      Unusable: missing, damaged, of another shape"""
        annotated = self.pictures[index]
        image = self.open(annotated.source, size)
        width, height = annotated.size
        scale = min(1.0, size / max(width, height))
        if max(abs(image.shape[1] - width * scale), abs(image.shape[0] - height * scale)) > 1:
            raise Unusable("picture has another shape than its annotations say",
                           f"{annotated.key}: {image.shape[1]} x {image.shape[0]}, not {width} x {height}")
        return image, annotated

    def first(self, count: int) -> "BoxData":
        """Its first pictures; all of them for 0."""
        return replace(self, pictures=self.pictures[:count]) if count else self

    def frequencies(self) -> np.ndarray:
        """How many boxes each class has.      -> (K,)"""
        labels = np.concatenate([p.label for p in self.pictures]) if self.pictures else np.zeros(0, np.int64)
        return np.bincount(labels, minlength=len(self.classes))


# ------------------------------------------------------------------------------------------------------------- COCO and its kin


def open_coco(path: Path, *, annotations: str = "", images: str = "", first: int = 0, strict: bool = False) -> BoxData:
    """COCO's instances, and every file of that form.      path: the JSON, or the folder of everything

    annotations: the JSON below the folder, where it holds several; images: where the pictures are, if not below it.
    """
    return coco_like(path, annotations, images, first, strict, "instances")


def open_objects365(path: Path, *, annotations: str = "", images: str = "", first: int = 0, strict: bool = False) -> BoxData:
    """Objects365, whose JSON has COCO's form."""
    return coco_like(path, annotations, images, first, strict, "zhiyuan_objv2", "objects365")


def open_lvis(path: Path, *, annotations: str = "", images: str = "", first: int = 0, strict: bool = False) -> BoxData:
    """LVIS v1: pictures by their coco_url, classes with frequencies, what was looked for in each picture."""
    return coco_like(path, annotations, images, first, strict, "lvis", federated=True)


def coco_like(path: Path, annotations: str, images: str, first: int, strict: bool, *starts: str,
              federated: bool = False) -> BoxData:
    file = the_file(path, annotations, starts)
    if first < 0:
        raise ValueError(f"first: expected at least 0, which takes all, got {first}")
    content = read_json(file)
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            found = ", ".join(list(content)[:8]) if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"{file}: expected COCO's lists images, annotations and categories, found {found or 'nothing'}; "
                             f"see {PAGE}")
    report = LoadReport(str(file), strict, PAGE)
    kept = [c for c in content["categories"] if isinstance(c, dict) and number(c.get("id")) and text(c.get("name"))]
    if len(kept) < len(content["categories"]):
        report.skip("category without an id and a name", file.name, count=len(content["categories"]) - len(kept))
    kept = sorted({c["id"]: c for c in kept}.values(), key=lambda c: c["id"])
    if not kept:
        raise ValueError(f"{file}: expected categories with id and name, found none; see {PAGE}")
    ids = {c["id"]: k for k, c in enumerate(kept)}
    frequency = tuple(c.get("frequency", "") for c in kept) if federated else ()
    if federated and set(frequency) - set("rcf"):
        raise ValueError(f"{file}: expected LVIS v1's categories with a frequency of r, c or f, got "
                         f"{sorted(map(str, set(frequency) - set('rcf')))[0]!r}; open it as coco: if it is not federated")
    rows: dict[Any, list] = defaultdict(list)
    for note in content["annotations"]:
        rows[note.get("image_id") if isinstance(note, dict) and number(note.get("image_id")) else None].append(note)
    pictures: list[Annotated] = []
    seen = set()
    for image in content["images"]:
        if first and len(pictures) == first:
            break
        key = image.get("id") if isinstance(image, dict) else None
        file_name = file_of(image, federated) if isinstance(image, dict) else None
        size = sides(image)
        if not number(key) or key in seen or not file_name or size is None:
            report.skip("image record without an id of its own, a file name, a width and a height", f"image {key}")
            continue
        seen.add(key)
        pictures.append(Annotated(f"image {key}", file_name, size, *boxes_of(rows.pop(key, []), ids, size, key, report),
                                  *(tuple(sorted(classes_of(image, which, ids, report))) for which in (
                                      ("neg_category_ids", "not_exhaustive_category_ids") if federated else ()))))
    listed = {image.get("id") for image in content["images"] if isinstance(image, dict) and number(image.get("id"))}
    lost = {key: notes for key, notes in rows.items() if key not in listed}
    for key, notes in lost.items():
        report.skip("annotation of an image that is not listed", f"image {key}", count=len(notes))
    if not pictures:
        raise ValueError(f"{file}: expected pictures, found none that can be used\n{report}")
    report.kept |= {"pictures": len(pictures), "boxes": sum(len(p.label) for p in pictures), "classes": len(kept)}
    return BoxData(PUBLISHED.get(file.stem, file.stem), tuple(c["name"] for c in kept), tuple(c["id"] for c in kept),
                   tuple(pictures), opener(folder_of(file, path, images)), report, frequency)


def boxes_of(notes: Sequence[Any], ids: dict[int, int], size: tuple[int, int], key: Any, report: LoadReport) -> tuple:
    """The usable boxes of one picture.      -> box (M,4), label (M,), area (M,), crowd (M,)"""
    found = []
    for note in notes:
        where = f"annotation {note.get('id') if isinstance(note, dict) else note} of image {key}"
        if not isinstance(note, dict) or not number(note.get("category_id")) or note["category_id"] not in ids:
            report.skip("annotation of an unknown category", where)
            continue
        box = usable_box(note.get("bbox"), size, where, report)
        if box is not None:
            area = note.get("area")
            area = area if number(area) and area >= 0 else box[2] * box[3]  # type: ignore[operator]
            found.append((box, ids[note["category_id"]], area, bool(note.get("iscrowd"))))
    return arrays(found)


def arrays(found: Sequence[tuple]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return (np.array([f[0] for f in found], np.float64).reshape(-1, 4), np.array([f[1] for f in found], np.int64),
            np.array([f[2] for f in found], np.float64), np.array([f[3] for f in found], bool))


def usable_box(box: Any, size: tuple[int, int], where: str, report: LoadReport) -> list[float] | None:
    """x, y, w, h within the picture, cut where it reaches out by more than rounding; None, counted, where nothing is left."""
    if not isinstance(box, list) or len(box) != 4 or not all(map(number, box)):
        report.skip("box is not four numbers", where, str(box)[:60])
        return None
    x, y, w, h = map(float, box)
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, size[0]), min(y + h, size[1])
    if w <= 0 or h <= 0:
        report.skip("box without area", where, str(box))
    elif x1 <= x0 or y1 <= y0:
        report.skip("box outside of its picture", where, f"{box} in {size[0]} x {size[1]}")
    elif max(x0 - x, y0 - y, x + w - x1, y + h - y1) > 1:
        report.convert("box reaches out of its picture, cut", where)
        return [x0, y0, x1 - x0, y1 - y0]
    else:
        return [x, y, w, h]
    return None


def classes_of(image: dict, which: str, ids: dict[int, int], report: LoadReport) -> set[int]:
    listed = image.get(which)
    if not isinstance(listed, list):
        raise ValueError(f"{report.source}: image {image.get('id')}: expected a list {which}, as LVIS v1 has it; open the file "
                         "as coco: if it is not federated")
    known = {ids[k] for k in listed if isinstance(k, int) and k in ids}
    if len(known) < len(listed):
        report.skip(f"unknown category in {which}", f"image {image.get('id')}", count=len(listed) - len(known))
    return known


def file_of(image: dict, federated: bool) -> str | None:
    """The picture's name; of LVIS folder and name out of coco_url, since its pictures come from two of COCO's splits."""
    url = image.get("coco_url")
    if federated and is_url(text(url)):
        return "/".join(text(url).split("/")[-2:])
    name = image.get("file_name")
    return text(name) or None


# ---------------------------------------------------------------------------------------------------------------- Visual Genome


def open_vg(path: Path, *, images: str = "", first: int = 0, strict: bool = False) -> BoxData:
    """Visual Genome: a folder with objects.json and image_data.json; every name that an object has is a class of its own."""
    file, sizes_file = path / "objects.json", path / "image_data.json"
    if first < 0:
        raise ValueError(f"first: expected at least 0, which takes all, got {first}")
    for needed in (file, sizes_file):
        if not needed.is_file():
            raise ValueError(f"{path}: expected Visual Genome's objects.json and image_data.json in it, found no {needed.name}")
    report = LoadReport(str(file), strict, PAGE)
    content, sizes = read_json(file), {}
    for image in listed(sizes_file, read_json(sizes_file)):
        if isinstance(image, dict) and number(image.get("image_id")):
            sizes[image["image_id"]] = sides(image)
    found: list[tuple[int, tuple[int, int], list]] = []
    for image in listed(file, content):
        if first and len(found) == first:
            break
        key = image.get("image_id", image.get("id")) if isinstance(image, dict) else None
        size = sizes.get(key) if number(key) else None
        if size is None or not isinstance(image.get("objects"), list):
            report.skip("picture without a size in image_data.json, or without objects", f"image {key}")
            continue
        rows = []
        for note in image["objects"]:
            note = note if isinstance(note, dict) else {}
            where = f"object {note.get('object_id')} of image {key}"
            said = note.get("names")
            names = [canonical(text(name)) for name in (said if isinstance(said, list) else [note.get("name")])]
            box = usable_box([note.get(side) for side in "xywh"], size, where, report)
            if box is not None and not any(names):
                report.skip("object without a name", where)
            rows += [(box, name, box[2] * box[3], False) for name in names if box is not None and name]
        found.append((image["image_id"] if "image_id" in image else image["id"], size, rows))
    classes = sorted({row[1] for _, _, rows in found for row in rows})
    if not classes:
        raise ValueError(f"{file}: expected objects with names and boxes, found none that can be used\n{report}")
    number_of = {name: k for k, name in enumerate(classes)}
    pictures = tuple(Annotated(f"image {key}", f"{key}.jpg", size,
                               *arrays([(box, number_of[name], area, crowd) for box, name, area, crowd in rows]))
                     for key, size, rows in found)
    report.kept |= {"pictures": len(pictures), "boxes": sum(len(p.label) for p in pictures), "classes": len(classes)}
    return BoxData("visual-genome", tuple(classes), tuple(range(len(classes))), pictures, opener(folder_of(file, path, images)),
                   report)


def listed(file: Path, content: Any) -> list:
    if not isinstance(content, list):
        raise ValueError(f"{file}: expected Visual Genome's list of pictures, got {type(content).__name__}")
    return content


# ----------------------------------------------------------------------------------------------------------------------- scenes


def open_scenes(path: Path, *, names: str = "", split: str = "train", size: int = 128, count: int = 1000, seed: int = 0,
                objects: tuple[int, int] = (1, 4), keep_opaque: bool = False) -> BoxData:
    """Scenes with exact masks, whose boxes are the masks'.      path: a zip or folder of pictures; drawn: scenes drawn here

    size: pixels a side; split: train, validation, test, and heldout of pictures or unseen of drawn scenes.
    """
    scenes: Any
    if path.name == "drawn" and not path.exists():
        scenes = DrawnScenes(split=split, size=size, count=count, seed=seed, objects=objects)
    else:
        scenes = PictureScenes(path, names or None, split, size, count, seed, objects, keep_opaque=keep_opaque)
    classes = {name: k for k, name in enumerate(scenes.classes)}

    def boxes(index: int) -> Annotated:
        rows = []
        for region in scenes[index].regions:
            y, x = np.flatnonzero(region.mask.any(1)), np.flatnonzero(region.mask.any(0))
            if len(y):                                    # or else it lies below the others
                rows.append(([x[0], y[0], x[-1] - x[0] + 1, y[-1] - y[0] + 1], classes[region.label], region.mask.sum(), False))
        return Annotated(f"scene {index}", index, (size, size), *arrays(rows))

    pictures = tuple(map(boxes, range(count)))
    report = getattr(scenes, "report", None) or LoadReport(scenes.name, page=PAGE)
    report.kept |= {"scenes": count, "boxes": sum(len(p.label) for p in pictures)}
    return BoxData(scenes.name, tuple(classes), tuple(range(len(classes))), pictures,
                   lambda index, most: resize(scenes[index].image, most, "within"), report)


KINDS: dict[str, Callable[..., BoxData]] = {
    "coco": open_coco, "lvis": open_lvis, "objects365": open_objects365, "vg": open_vg, "scenes": open_scenes}


# ------------------------------------------------------------------------------------------------------------------------ files


def read_json(file: Path) -> Any:
    """ValueError, naming the file, for what is missing, too large, no JSON, or nested without end."""
    if not file.is_file():
        raise ValueError(f"{file}: expected a JSON file, found {'something else' if file.exists() else 'nothing'} there")
    if (size := file.stat().st_size) > MAX_JSON:
        raise ValueError(f"{file}: {size} bytes, at most {MAX_JSON}; cut it into several")
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{file}: expected JSON ({type(error).__name__}: {str(error)[:200]}); fetch it again") from error


def the_file(path: Path, annotations: str, starts: Sequence[str]) -> Path:
    """The JSON that a path stands for."""
    if annotations:
        return path / annotations
    if not path.is_dir():
        return path
    found = sorted(f for start in starts for place in (path, path / "annotations") for f in place.glob(f"{start}*.json"))
    if len(found) != 1:
        several = ", ".join(str(f.relative_to(path)) for f in found[:6])
        raise ValueError(f"{path}: expected one {starts[0]}*.json in it or in annotations/, found "
                         f"{'several, name one with ?annotations=: ' + several if found else 'none'}; see {PAGE}")
    return found[0]


def folder_of(file: Path, path: Path, images: str) -> Path:
    """Where the pictures are."""
    if images:
        if not Path(images).is_dir():
            raise ValueError(f"images: expected a folder, found {'a file' if Path(images).exists() else 'nothing'} at {images}")
        return Path(images)
    return path if path.is_dir() else file.parent.parent if file.parent.name == "annotations" else file.parent


def opener(folder: Path) -> Callable[[str, int], np.ndarray]:
    """open(name, size) of the pictures of a folder, for any number of threads."""
    tree, alone = Tree([folder]), Lock()                  # it lists folders when it first needs them

    def read(name: str, size: int) -> np.ndarray:
        with alone:
            file = tree.find(name).file
        return read_image(file, size, "within", upright=False)[0]

    return read


def number(x: Any) -> bool:
    if isinstance(x, int):
        return not isinstance(x, bool) and abs(x) < 1 << 63
    return isinstance(x, float) and math.isfinite(x)


def text(x: Any) -> str:
    """A JSON value, if it is a text that says something, else nothing."""
    return x if isinstance(x, str) and x.strip() else ""


def sides(image: Any) -> tuple[int, int] | None:
    """A picture's width and height, where the record has both."""
    found = [image.get(name) if isinstance(image, dict) else None for name in ("width", "height")]
    width, height = (int(x) if isinstance(x, int | float) and number(x) else 0 for x in found)
    return (width, height) if min(width, height) >= 1 and max(width, height) <= MAX_SIDE else None


def canonical(name: str) -> str:
    """Names that say the same are equal: lower case, no punctuation."""
    return " ".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
