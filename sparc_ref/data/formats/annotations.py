"""JSON: COCO's annotations, Karpathy's splits, lists of records, names with captions; and one record a line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..load_report import LoadReport
from ..names import is_picture, valid
from .records import Row, to_row

EXPECTED = ('expected COCO captions (the lists "images" and "annotations"), Karpathy\'s splits ("images" with "sentences"), '
            "a list of records, or captions by the picture's name")


def parse(text: str) -> Any:
    """JSON; a name that an object holds twice has the values of both, in a list.   ValueError, RecursionError"""
    return json.loads(text, object_pairs_hook=_gathered)


def _gathered(pairs: list[tuple[str, Any]]) -> dict:
    if len(dict(pairs)) == len(pairs):
        return dict(pairs)
    values: dict[str, list] = {}                                  # json alone would keep the last one and lose the others
    for key, value in pairs:
        values.setdefault(key, []).append(value)
    flat = {key: [v for value in several for v in (value if isinstance(value, list) else [value])]
            for key, several in values.items()}
    return {key: several[0] if len(several) == 1 else flat[key] for key, several in values.items()}


def read_lines(path: Path, text: str, report: LoadReport) -> Iterator[Row]:
    """One JSON object a line."""
    for number, line in enumerate(text.split("\n"), 1):
        where = f"line {number}"
        if not line.strip():
            continue
        if not valid(line):
            report.skip("line is not UTF-8", where)
            continue
        try:
            record = parse(line)
        except (ValueError, RecursionError) as error:
            report.skip("line is not JSON", where, str(error))
            continue
        if row := to_row(record, where, report):
            yield row


def read_json(path: Path, text: str, report: LoadReport) -> Iterator[Row]:
    """A whole JSON document; where the file is one object a line, those.   ValueError where it is neither"""
    try:
        content = parse(text)
    except (ValueError, RecursionError) as error:
        if one_a_line(text):
            yield from read_lines(path, text, report)
            return
        raise ValueError(f"{path}: {EXPECTED}; got no JSON ({type(error).__name__}: {error}). Formats: docs/data.md") from error
    if isinstance(content, dict):
        images, notes = content.get("images"), content.get("annotations")
        if isinstance(images, list) and any(isinstance(image, dict) and "sentences" in image for image in images):
            yield from _karpathy(images, report)
            return
        if isinstance(images, list) and isinstance(notes, list):
            yield from _coco(images, notes, report)
            return
        if any(map(is_picture, content)):
            for name, captions in content.items():
                yield Row(f"entry {name}", name, captions if isinstance(captions, list) else [captions])
            return
        content = next((content[k] for k in ("annotations", "data", "images") if isinstance(content.get(k), list)), None)
    if not isinstance(content, list):
        raise ValueError(f"{path}: {EXPECTED}; got {_shape(parse(text))}. Formats: docs/data.md")
    for number, record in enumerate(content):
        if row := to_row(record, f"record {number}", report):
            yield row


def one_a_line(text: str) -> bool:
    """Whether the first line is a JSON object of its own."""
    try:
        return isinstance(parse(text.lstrip().partition("\n")[0]), dict)
    except (ValueError, RecursionError):
        return False


def is_document(text: str) -> bool:
    """Whether a file that should hold one object a line is one JSON document over several lines."""
    if one_a_line(text):
        return False
    try:
        return isinstance(parse(text), (list, dict))
    except (ValueError, RecursionError):
        return False


def _shape(content: Any) -> str:
    return f"an object with {', '.join(list(content)[:8])}" if isinstance(content, dict) else type(content).__name__


def _coco(images: list, notes: list, report: LoadReport) -> Iterator[Row]:
    """Captions by image_id; an id that is a number in one list and text in the other is one where only one fits."""
    def usable(key):
        return isinstance(key, (int, str)) and not isinstance(key, bool)

    captions: dict[Any, list] = {}
    listed = {image["id"] for image in images if isinstance(image, dict) and usable(image.get("id"))}
    by_text: dict[str, set] = {}
    for key in listed:
        by_text.setdefault(str(key), set()).add(key)
    for number, note in enumerate(notes):
        if not isinstance(note, dict) or not usable(note.get("image_id")) or "caption" not in note:
            report.skip("record without an image and a caption", f"annotation {number}")
            continue
        key = note["image_id"]
        if key not in listed and len(same := by_text.get(str(key), set())) == 1:
            (key,) = same
            report.convert("id is a number here and text there", f"annotation {number}")
        captions.setdefault(key, []).append(note["caption"])
    seen = set()
    for number, image in enumerate(images):
        if not isinstance(image, dict) or not usable(image.get("id")) or "file_name" not in image:
            report.skip("record without an id and a file_name", f"image record {number}")
        elif image["id"] in seen:
            report.skip("second picture of one id", f"image {image['id']}")
        else:
            seen.add(image["id"])
            yield Row(f"image {image['id']}", image["file_name"], captions.pop(image["id"], []))
    for key, lost in captions.items():
        report.skip("caption of an image that is not listed", f"image {key}", count=len(lost))


def _karpathy(images: list, report: LoadReport) -> Iterator[Row]:
    """dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json: a split for each picture, "restval" is training."""
    for number, image in enumerate(images):
        where = f"image record {number}"
        image = image if isinstance(image, dict) else {}
        if not isinstance(image.get("filename"), str) or not isinstance(image.get("sentences"), list):
            report.skip("record without an image and a caption", where, "expected filename and sentences")
            continue
        folder = image.get("filepath")
        name = f"{folder}/{image['filename']}" if isinstance(folder, str) and folder else image["filename"]
        raw = [s.get("raw") if isinstance(s, dict) else s for s in image["sentences"]]
        yield Row(where, name, raw, image.get("split") if isinstance(image.get("split"), str) else None)


def read_tags(path: Path) -> dict[str, list[tuple[str, str]]]:
    """JSON lines of tagged captions: {"caption": text, "tags": [[token, tag], ...]}.   -> caption: [(token, tag), ...]

    ValueError: a file that cannot be read, or a line that is none.
    """
    found = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected JSON lines of tagged captions ({type(error).__name__}: {error})") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = parse(line)
            pairs = [(token, tag) for token, tag in record["tags"]]
            if not isinstance(record["caption"], str) or not all(isinstance(s, str) for pair in pairs for s in pair):
                raise TypeError("not text")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f'{path}, line {number}: expected {{"caption": "a cat", "tags": [["a", "DET"], ["cat", "NOUN"]]}},'
                             f" got {line[:60]!r} ({type(error).__name__}: {error})") from error
        found[" ".join(record["caption"].split())] = pairs
    return found
