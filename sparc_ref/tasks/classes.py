"""Folders of classes, ImageNet's and any other's, and their names: what classification.py measures on."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sparc_ref.data.names import is_picture
from sparc_ref.evaluate.check import chosen
from sparc_ref.tasks.stream import Source
from sparc_ref.tasks.webdataset import PAGE, open_shards, read_lines, read_text, text_of

CORRUPTIONS = ("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
               "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression")
SEVERITIES = ("1", "2", "3", "4", "5")


@dataclass(frozen=True)
class Cell:
    """Pictures that are scored together: all of them, or those of one corruption and severity."""

    corruption: str
    severity: str
    list: Callable[[Counter[str]], tuple[list[Source], np.ndarray]]  # pictures and labels; counts what it leaves out


@dataclass
class ClassData:
    """classes: the names; own (C,): those that the set scores over; templates: its own prompts, {c} stands for the name."""

    kind: str
    path: Path
    name: str
    classes: tuple[str, ...]
    own: np.ndarray
    cells: list[Cell]
    templates: tuple[str, ...] = ()
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def open_folders(kind: str, title: str, expected: int, path: Path, *, classnames: str | None = None, wnids: str | None = None,
                 name: str | None = None) -> ClassData:
    """A folder for each class.

    kind, title, expected: "imagenet-a", "ImageNet-A", 200 folders; of any other set "folders", "", 0
    classnames, wnids: files, see class_names; name: what tables call the data.   ValueError: no class, no picture, no names
    """
    folders = class_folders(path)
    classes, index, notes = class_names(kind, path, folders, classnames, wnids)
    counts: Counter[str] = Counter()
    pictures, labels = list_pictures(path, folders, index, counts)
    own = np.zeros(len(classes), bool)
    own[list(index.values())] = True
    if not pictures:
        left = "; ".join(f"{n} {cause}" for cause, n in counts.items())
        raise ValueError(f"{path}: expected pictures in its {len(folders)} folders, found none{left and ': ' + left}"
                         f"{'; name the folder of one split' if holds_folders(path, folders) else ''}. See {PAGE}")
    if empty := [f for f in folders if index[f] not in set(labels.tolist())]:
        counts["folders of classes without a picture"] = len(empty)
        notes.append(f"no picture in {', '.join(empty[:5])}: still a class that may be chosen")
    if links := linked(path):
        counts["links to folders, not followed"] = len(links)
        notes.append(f"links to folders are no classes: {', '.join(links[:5])}")
    if expected and len(folders) != expected:
        notes.append(f"{title} has {expected} folders, here are {len(folders)}: not comparable with published numbers")
    variant = next((f" {v}" for v in ("threshold0.7", "matched-frequency", "top-images") if v in path.resolve().name), "")
    known = f"{title}{variant if kind == 'imagenet-v2' else ''}"
    return ClassData(kind, path, name or known or name_of(path), classes, own,
                     [Cell("", "", lambda counts: (pictures, labels))], counts=counts, notes=notes)


def open_imagenet_c(path: Path, *, classnames: str | None = None, wnids: str | None = None, name: str | None = None,
                    corruptions: str = "standard") -> ClassData:
    """Corruption, severity, class.      corruptions: "standard": the 15 of Table 1 | "all" that are there"""
    chosen("corruptions", corruptions, ("standard", "all"))
    there = [entry for entry in subfolders(path) if subfolders(path / entry)]
    wanted = [c for c in (CORRUPTIONS if corruptions == "standard" else there) if c in there]
    if not wanted:
        found = ", ".join(there[:5]) or "none"
        raise ValueError(f"{path}: expected folders such as {', '.join(CORRUPTIONS[:3])}, found {found}. See {PAGE}")
    cells: list[Cell] = []
    counts: Counter[str] = Counter()
    notes: list[str] = []
    classes: tuple[str, ...] = ()
    own = np.zeros(0, bool)
    first: dict[str, int] = {}
    for corruption in wanted:
        for severity in SEVERITIES:
            folder = path / corruption / severity
            if not folder.is_dir():
                counts["corruptions and severities that are missing"] += 1
                continue
            folders = class_folders(folder)
            if not classes:
                classes, first, notes = class_names("imagenet-c", folder, folders, classnames, wnids, path)
                own = np.zeros(len(classes), bool)
                own[list(first.values())] = True
            if folders != list(first):
                odd = sorted(set(folders) ^ set(first))
                raise ValueError(f"{folder}: expected the {len(first)} classes of {cells[0].corruption}/{cells[0].severity}, "
                                 f"differs in {', '.join(odd[:5])}; complete it")
            cells.append(Cell(corruption, severity, partial(list_pictures, folder, folders, first)))
    if not cells:
        raise ValueError(f"{path}: expected folders 1 to 5 in {', '.join(wanted[:3])}, found none. See {PAGE}")
    if absent := [c for c in CORRUPTIONS if c not in wanted]:
        notes.append(f"without {', '.join(absent)}: not comparable with published numbers")
    return ClassData("imagenet-c", path, name or "ImageNet-C", classes, own, cells, counts=counts, notes=notes)


def open_webdataset(path: Path, *, split: str = "test", name: str | None = None) -> ClassData:
    """CLIP_benchmark's layout.   ValueError: another layout, no names, no picture with a label of theirs"""
    shards = open_shards(path, split, "classification")
    classes = tuple(read_lines(path / "classnames.txt"))
    file = path / "zeroshot_classification_templates.txt"
    templates = tuple(read_lines(file)) if file.is_file() else ()
    if bad := [line for line in templates if "{c}" not in line]:
        raise ValueError(f"{file}: expected {{c}} in every line, where the name goes; got {bad[0][:60]!r}")
    pictures, labels = [], []
    for picture, label in zip(shards.pictures, shards.texts):
        text = (text_of(label) or "").strip()
        number = text.lstrip("0") or "0"
        if not text.isascii() or not text.isdigit() or len(number) > 9 or int(number) >= len(classes):
            shards.counts["label that is no number of a class"] += 1
        else:
            pictures.append(picture)
            labels.append(int(number))
    if not pictures:
        raise ValueError(f"{path}: expected labels 0..{len(classes) - 1}, the lines of classnames.txt; no .cls holds one")
    kept = pictures, np.array(labels)
    return ClassData("webdataset", path, name or path.resolve().name, classes, np.ones(len(classes), bool),
                     [Cell("", "", lambda counts: kept)], templates, shards.counts, shared_names(classes))


def name_of(path: Path) -> str:
    """The folder's name; of a split also that of the folder above it."""
    at = path.resolve()
    return f"{at.parent.name} {at.name}" if at.name.lower() in ("train", "val", "validation", "test") else at.name


def subfolders(path: Path) -> list[str]:
    """Names of the folders in a folder, links to folders not followed, sorted.   ValueError where there is no such folder"""
    try:
        with os.scandir(path) as entries:
            return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith("."))
    except OSError as error:
        raise ValueError(f"{path}: expected a folder ({error.strerror}). See {PAGE}") from error


def class_folders(path: Path) -> list[str]:
    """The folders of the classes, sorted.   ValueError: none, or two of one number"""
    found = subfolders(path)
    if not found:
        links = f", {len(linked(path))} links to folders are not followed" * bool(linked(path))
        raise ValueError(f"{path}: expected a folder for each class, found none{links}. See {PAGE}")
    if numbered(found) and len({int(f) for f in found}) < len(found):
        raise ValueError(f"{path}: expected a folder for each class, got two of one number, such as 1 and 01")
    return found


def linked(path: Path) -> list[str]:
    """Names of the links to folders in a folder."""
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.is_symlink() and e.is_dir() and not e.name.startswith("."))


def numbered(folders: list[str]) -> bool:
    return all(re.fullmatch("[0-9]{1,9}", f) for f in folders)


def holds_folders(path: Path, folders: list[str]) -> bool:
    return any(subfolders(path / f) for f in folders[:20])


def list_pictures(path: Path, folders: list[str], index: dict[str, int],
                  counts: Counter[str]) -> tuple[list[Source], np.ndarray]:
    """The pictures of every class, sorted by name; links that leave the folder and other files are counted."""
    root = path.resolve()
    pictures, labels = [], []
    for folder in folders:
        with os.scandir(path / folder) as entries:
            held = sorted(entries, key=lambda e: e.name)
        for entry in held:
            if entry.is_dir(follow_symlinks=False) or entry.name.startswith("."):
                continue
            if not is_picture(entry.name):
                counts["files that are no pictures"] += 1
            elif entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(root):
                counts["path leaves the folder"] += 1
            else:
                pictures.append(Source(entry.path))
                labels.append(index[folder])
    return pictures, np.array(labels, np.int64)


def class_names(kind: str, path: Path, folders: list[str], classnames: str | None, wnids: str | None,
                beside: Path | None = None) -> tuple[tuple[str, ...], dict[str, int], list[str]]:
    """Every class' name, and which of them each folder is.      -> names (C,), {folder: class}, notes

    classnames  a file: .json {folder: name}, [names] or {"0": [folder, name]}; else text: one name a line, or folder TAB name.
                Where none is given classnames.txt in the folder or above it; else, for other sets than ImageNet's, the folders'
                names themselves, _ made a space.
    wnids       where classnames has names alone: the folder of each, one a line (wnids.txt in the same places). Not needed
                where there are as many folders as names, which are then in the folders' sorted order, as ImageNet's class
                numbers are, nor where folders are named by numbers.
    """
    places = dict.fromkeys((path, beside or path, (beside or path).resolve().parent))
    found = [place / "classnames.txt" for place in places if (place / "classnames.txt").is_file()]
    file = Path(classnames) if classnames else found[0] if found else None
    notes: list[str] = []
    if file is None and kind != "folders":
        raise ValueError(
            f"{path}: expected the classes' names: put classnames.txt beside it, one name a line in the order of the sorted "
            "wnids, or give it with ?classnames=. CLIP's notebook Prompt_Engineering_for_ImageNet lists the 1000 curated ones "
            f"as imagenet_classes; raw WordNet's score several points less. See {PAGE}")
    if file is None:
        keys, names = folders, [f.replace("_", " ") for f in folders]
    else:
        keys, names = read_names(file)
    if not keys:
        there = [place / "wnids.txt" for place in places if (place / "wnids.txt").is_file()]
        order = Path(wnids) if wnids else there[0] if there and kind != "imagenet-v2" else None
        if numbered(folders):
            keys = [str(n) for n in range(len(names))]
            folders_as = {f: str(int(f)) for f in folders}
        elif order:
            keys, folders_as = read_lines(order), {f: f for f in folders}
            if len(keys) != len(names):
                raise ValueError(f"{order}: expected a folder for each of the {len(names)} names of {file}, got {len(keys)}")
        elif len(folders) == len(names):
            keys, folders_as = folders, {f: f for f in folders}
        else:
            raise ValueError(f"{path}: {file} has {len(names)} names, and here are {len(folders)} folders: expected as many, "
                             f"or wnids.txt beside it (or ?wnids=), which says the folder of each name, one a line. See {PAGE}")
    else:
        folders_as = {f: f for f in folders}
    index = {key: n for n, key in enumerate(keys)}
    if len(index) < len(keys):
        twice = next(key for key, n in Counter(keys).items() if n > 1)
        raise ValueError(f"{file}: expected each folder once, got {twice!r} twice")
    if unknown := [f for f in folders if folders_as[f] not in index]:
        raise ValueError(f"{path}: {len(unknown)} of its folders have no name in {file}: {', '.join(unknown[:5])}; name them "
                         f"there, or take them away. See {PAGE}")
    return tuple(names), {f: index[folders_as[f]] for f in folders}, notes + shared_names(names)


def shared_names(names: Sequence[str]) -> list[str]:
    """A note where classes have one name."""
    shared = len(names) - len(set(names))
    return [f"{shared} names are another class' too: such classes tie, and share their pictures evenly"] * bool(shared)


def read_names(file: Path) -> tuple[list[str], list[str]]:
    """A file of names.      -> the folder of each, or [] where it does not say; the names"""
    if file.suffix.lower() != ".json":
        lines = read_lines(file)
        pairs = [line.partition("\t")[::2] for line in lines]
        if not any("\t" in line for line in lines):
            return [], lines or refuse(file, "an empty file")
        if bad := [n for n, (key, name) in enumerate(pairs, 1) if not key.strip() or not name.strip()]:
            raise ValueError(f"{file}: line {bad[0]}: expected folder TAB name, as in other lines")
        return [key.strip() for key, _ in pairs], [name.strip() for _, name in pairs]
    try:
        content = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{file}: expected JSON, {{folder: name}} or a list of names ({reason})") from error
    if isinstance(content, list) and content and all(isinstance(x, str) and x.strip() for x in content):
        return [], content
    if isinstance(content, dict) and content:
        if all(isinstance(x, str) and x.strip() for x in content.values()):
            return list(content), list(content.values())
        if sorted(content) == sorted(map(str, range(len(content)))):
            rows = [content[str(n)] for n in range(len(content))]
            if all(isinstance(x, list) and len(x) == 2 and all(isinstance(y, str) and y.strip() for y in x) for x in rows):
                return [key for key, _ in rows], [name for _, name in rows]
    return refuse(file, f"{type(content).__name__} of {len(content) if isinstance(content, (list, dict)) else 1}")


def refuse(file: Path, found: str) -> Any:
    raise ValueError(f"{file}: expected names, as lines, a list, {{folder: name}} or {{\"0\": [folder, name]}}; got {found}")
