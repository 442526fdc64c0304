"""Which caption file a folder holds."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from ..locate import hub_blobs
from .beside import has_pairs
from .records import SPLIT

TABLES = (".csv", ".tsv", ".txt", ".token")
ENDINGS = (".jsonl", ".json", *TABLES)
NAMES = ("captions.jsonl", "captions.json", "captions.csv", "captions.tsv", "metadata.jsonl", "metadata.csv", "captions.txt",
         "results.csv")
REMEDIES = dict.fromkeys((".tar", ".zip", ".gz"), "unpack it") | dict.fromkeys(
    (".parquet", ".xlsx", ".arrow", ".feather"), "save it as CSV")
OF_A_SPLIT = re.compile(rf"(?:.*[_.\-])?({'|'.join(SPLIT)})(?:\d{{4}})?", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """file: the caption file, or the folder itself where each picture has its text beside it; splits: the file of each;
    also: names of caption files that lie there and are not read."""

    file: Path
    splits: dict[str, Path] = field(default_factory=dict)
    also: tuple[str, ...] = ()


def discover(path: Path, split: str) -> Source:
    """The caption file that a path stands for.      split: which of several, where a folder has one for each

    A file stands for itself. In a folder: captions.* or metadata.*; a file or folder for each split, train.csv, val.csv or
    train/metadata.jsonl; pictures with texts beside them; else the only file that may hold captions, also in annotations/.
    ValueError: nothing there, or several.
    """
    if not path.is_dir():
        if not path.is_file():
            raise ValueError(f"{path}: expected a folder or a file, found nothing there. Formats: docs/data.md")
        if path.suffix.lower() not in ENDINGS:
            remedy = REMEDIES.get(path.suffix.lower(), "")
            raise ValueError(f"{path}: expected {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}, got {path.suffix!r}"
                             f"{remedy and '; ' + remedy}. Formats: docs/data.md")
        return Source(path)
    usual = [path / name for name in NAMES if (path / name).is_file()]
    if usual:
        return Source(_own(usual[0], path), also=tuple(file.name for file in usual[1:]))
    below = [path / "annotations"] * ((path / "annotations").is_dir() and not (path / "annotations").is_symlink())
    files = [f for folder in (path, *below) for f in sorted(folder.iterdir()) if _may_hold(f)]
    splits = _splits(path, files)
    if splits:
        wanted = SPLIT.get(split, split)
        if wanted not in splits:
            raise ValueError(f"{path}: split: expected one of {', '.join(splits)}, which it has, got {split}. See docs/data.md")
        found = splits[wanted]
        return Source(_own(discover(found, split).file if found.is_dir() else found, path), splits)
    if has_pairs(path):
        return Source(path)
    files = [f for f in files if f.suffix.lower() != ".txt"] or files
    if len(files) == 1:
        return Source(_own(files[0], path))
    several = ", ".join(f.relative_to(path).as_posix() for f in files[:9])
    endings = sorted({f.suffix.lower() for f in path.iterdir()} & REMEDIES.keys())
    others = f" ({'; '.join(f'its {ending}: {REMEDIES[ending]}' for ending in endings)})" if endings else ""
    raise ValueError(f"{path}: expected one of {', '.join(NAMES)} in it, or pictures with a text beside each, found "
                     f"{'several files that may be meant, name one: ' + several if files else 'none' + others}. "
                     "Formats: docs/data.md")


def _may_hold(file: Path) -> bool:
    return file.suffix.lower() in ENDINGS and file.is_file() and not file.name.startswith(".") and not (
        file.stem.endswith("_stats") or file.stem.lower() in ("readme", "license"))


def _own(file: Path, folder: Path) -> Path:
    """A caption file that was found, not named, must lie in the folder that was named."""
    real, at = file.resolve(), folder.resolve()
    if not any(real.is_relative_to(place) for place in (at, *hub_blobs(at))):
        raise ValueError(f"{file}: a link that leaves {folder}; name the caption file itself if it is meant")
    return file


def _splits(path: Path, files: list[Path]) -> dict[str, Path]:
    """A file or folder for each split, at least two."""
    places: dict[str, list[Path]] = {}
    folders = [p for p in sorted(path.iterdir()) if p.is_dir() and any((p / name).is_file() for name in NAMES)]
    for place in folders or files:
        match = OF_A_SPLIT.fullmatch(place.name if place.is_dir() else place.stem)
        if match:
            places.setdefault(SPLIT[match[1].lower()], []).append(place)
    for split, found in places.items():                           # COCO has instances_train2014.json beside its captions
        places[split] = [f for f in found if f.name.lower().startswith("captions")] or found
    if any(len(found) > 1 for found in places.values()) or len(places) < 2:
        return {}
    return {split: found[0] for split, found in places.items()}
