"""One picture with its captions: what every format comes down to, and the names that fields and columns may have."""

from dataclasses import dataclass
from typing import Any

from ..load_report import LoadReport
from ..names import is_picture

IMAGE = ("image", "filepath", "file_name", "path", "file", "filename", "file_path", "image_path", "image_name")
CAPTION = ("caption", "captions", "text", "title", "raw_caption", "comment")
URL = ("url", "image_url")
SPLIT = {"train": "train", "restval": "train", "val": "validation", "valid": "validation", "validation": "validation",
         "dev": "validation", "test": "test"}
ACCEPTED = f"for the picture {', '.join(IMAGE)}; for the caption {', '.join(CAPTION)}"


@dataclass(frozen=True)
class Row:
    """where: line or record, for messages; name and captions as they stand there, unchecked; split: the file's own, if any."""

    where: str
    name: Any
    captions: list
    split: str | None = None


def chosen(names: list[str]) -> tuple[str, list[str]] | None:
    """Of these fields the picture's and the captions'; None where one of them is missing.

    In the order of IMAGE and CAPTION; "caption" and "captions" are taken together. A URL stands in for a picture's name.
    """
    image = next((f for f in (*IMAGE, *URL) if f in names), None)
    captions = [f for f in CAPTION[:2] if f in names] or [f for f in CAPTION[2:] if f in names][:1]
    return (image, captions) if image and captions else None


def to_row(record: Any, where: str, report: LoadReport) -> Row | None:
    """A JSON object as a row; counted if it has no picture or no caption.   Fields in any case; null ones count as absent"""
    if not isinstance(record, dict):
        report.skip("record without an image and a caption", where, f"expected an object, got {type(record).__name__}")
        return None
    fields: dict[str, Any] = {}
    for key, value in record.items():
        fields.setdefault(key.strip().lower(), value)
    found = chosen([k for k, v in fields.items() if v is not None]) or chosen(list(fields))
    if not found:
        report.skip("record without an image and a caption", where, f"found {', '.join(fields) or 'nothing'}")
        return None
    image, captions = found
    name = fields[image]
    if image == "filepath" and isinstance(name, str) and not is_picture(name) and isinstance(fields.get("filename"), str):
        name = f"{name}/{fields['filename']}"                     # Karpathy's: a folder and a file
    texts = [c for f in captions for c in (fields[f] if isinstance(fields[f], list) else [fields[f]])]
    split = fields.get("split")
    return Row(where, name, texts, split if isinstance(split, str) else None)
