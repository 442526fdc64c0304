"""From the names that caption files use to files: exactly as written, or else where one file alone fits.

A name never leads out of the folders: no "..", no link that leaves them. What was done to a name is said.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from .load_report import Unusable
from .names import fold, is_picture, is_url, nfc, parts


class Found(NamedTuple):
    """file, links followed; its name below the folder; change: what was done to the name; sure: not by a part of it alone."""

    file: Path
    name: str
    change: str = ""
    sure: bool = True


class Tree:
    """The folders that pictures lie in.

    roots   names start from these, the first one first
    also    links may lead here too
    """

    def __init__(self, roots: list[Path], also: list[Path] | None = None):
        self.given = [root.absolute() for root in dict.fromkeys(roots)]
        self.roots = list(dict.fromkeys(root.resolve() for root in roots))
        self.allowed = [*self.roots, *(folder.resolve() for folder in also or [])]
        self._listed = cache(_list)
        self._holders: dict[str, list[str]] | None = None

    def inside(self, path: Path) -> Path:
        """The file that a path stands for, links followed.   Unusable where there is none, or it is outside"""
        try:
            file = path.resolve(strict=True)
        except (OSError, RuntimeError, ValueError):               # absent, a loop of links, too long
            raise Unusable("image missing") from None
        if not any(file.is_relative_to(folder) for folder in self.allowed):
            raise Unusable("path leaves the folder", "by a link")
        return file

    def knows(self, name: str) -> bool:
        """Whether a file fits the name."""
        try:
            self.find(name)
        except Unusable:
            return False
        return True

    def find(self, name: str) -> Found:
        """The file of a name.   Unusable: image missing, path leaves the folder, several files fit the name, ..."""
        if is_url(name):
            return self._by_url(name)
        slashed = name.replace("\\", "/")
        if ".." in slashed.split("/") or slashed.startswith("~"):
            raise Unusable("path leaves the folder")
        drive = PureWindowsPath(name).drive
        if slashed.startswith("/") or drive:
            return self._absolute(slashed, drive.replace("\\", "/"))
        left = None
        for spelling, change in ((name, ""), (slashed, "backslashes read as slashes"))[:1 + (slashed != name)]:
            for root in self.roots:
                try:
                    return Found(self.inside(root / spelling), PurePosixPath(spelling).as_posix(), change)
                except Unusable as error:
                    left = error if "leaves" in error.reason else left
        if left:
            raise left
        return self._guess(slashed)

    def _absolute(self, name: str, drive: str) -> Found:
        """Inside a folder: that file. Elsewhere, as in a list from another machine: the one file whose path ends the same."""
        for folder in (*self.given, *self.roots):
            if PurePosixPath(name).is_relative_to(folder.as_posix()):
                return self.find(PurePosixPath(name).relative_to(folder.as_posix()).as_posix())
        try:
            found = self._guess(name.removeprefix(drive))
        except Unusable as error:
            raise (error if "several" in error.reason else Unusable("path leaves the folder")) from None
        return found._replace(change="absolute path, found by its end", sure=False)

    def _by_url(self, name: str) -> Found:
        try:
            base = unquote(urlsplit(name).path).split("/")[-1]
        except ValueError:                                        # "http://[x" has no host that could be one
            base = ""
        if base not in ("", "..") and is_picture(base):
            try:
                return self.find(base)._replace(change="URL, the local file of its name taken", sure=False)
            except Unusable as error:
                if "missing" not in error.reason:
                    raise
        raise Unusable("picture is a URL, its file is not here", "img2dataset fetches what URLs name")

    def _guess(self, name: str) -> Found:
        """What fits but for Unicode form and case; then in a folder more or fewer; then without extension, or as a number."""
        wanted = parts(name)
        if not wanted:
            raise Unusable("image missing")
        equal = self._at([wanted])
        if equal:
            same = [path for path, below in equal.items() if nfc(below) == nfc("/".join(p for p in name.split("/") if p))]
            if len(same) == 1 or len(equal) == 1:
                path = (same or list(equal))[0]
                form = "other Unicode form of the name" if same else "other case of the name"
                return Found(self.inside(path), equal[path], form)
            raise Unusable("several files fit the name", f"but for case: {', '.join(list(equal.values())[:2])}")
        ways = [(self._deeper(wanted, "name"), "name", "found in another folder")]
        ways += [([wanted[k:]], "name", "found in another folder") for k in range(1, len(wanted))]
        if not is_picture(name):
            ways += [(where, "stem", "name completed by its extension") for where in ([wanted], self._deeper(wanted, "stem"))]
        if wanted[-1].isascii() and wanted[-1].isdigit() and len(wanted[-1]) < 100:
            change = "number completed to a file's name"
            ways += [(where, "number", change) for where in ([wanted], self._deeper(wanted, "number"))]
        for where, how, change in ways:
            fit = self._at(where, how)
            if len(fit) == 1:
                ((path, below),) = fit.items()
                return Found(self.inside(path), below, change, False)
            if fit:
                raise Unusable("several files fit the name", ", ".join(list(fit.values())[:2]))
        raise Unusable("image missing")

    def _deeper(self, wanted: list[str], how: str) -> list[list[str]]:
        """Places in the folders directly below the roots: images/, train2014/, val2014/, shards, and the like."""
        if self._holders is None:
            self._holders = defaultdict(list)
            for folder in {root / name for root in self.roots for name in self._listed(root)["folder"]}:
                for key in self._listed(folder):
                    self._holders[key].append(fold(folder.name))
        key = _key(wanted[0], how) if len(wanted) == 1 else f"into/{wanted[0]}"
        return [[folder, *wanted] for folder in sorted(set(self._holders.get(key, ())))]

    def _at(self, places: list[list[str]], how: str = "name") -> dict[Path, str]:
        """Files inside whose folded path below a root is one of these, and that path as it is on disk."""
        found: dict[Path, str] = {}
        for root in self.roots:
            for place in places:
                for path in self._down(root, place, how):
                    try:
                        self.inside(path)
                    except Unusable:
                        continue
                    found.setdefault(path, path.relative_to(root).as_posix())
        return found

    def _down(self, folder: Path, place: list[str], how: str) -> Iterator[Path]:
        """Walk down one folder at a time, so that nothing but what is named gets listed."""
        if len(place) == 1:
            yield from (folder / name for name in self._listed(folder).get(_key(place[0], how), ()))
            return
        for name in self._listed(folder).get(f"into/{place[0]}", ()):
            yield from self._down(folder / name, place[1:], how)


def _key(name: str, how: str) -> str:
    return f"{how}/{int(name) if how == 'number' else name}"


def hub_blobs(folder: Path) -> list[Path]:
    """The hub's cache keeps name/snapshots/revision/ full of links to name/blobs/: that folder too is the data set's own."""
    blobs = folder.parent.parent / "blobs"
    return [blobs] if folder.parent.name == "snapshots" and blobs.is_dir() and not blobs.is_symlink() else []


def _list(folder: Path) -> dict[str, list[str]]:
    """What a folder holds: pictures by folded name, stem and number, folders by folded name; links to folders not followed."""
    index: dict[str, list[str]] = defaultdict(list)
    try:
        with os.scandir(folder) as entries:
            held = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except OSError:
        return index
    for name, is_folder in held:
        if is_folder and not name.startswith("."):
            index["folder"].append(name)
            index[f"into/{fold(name)}"].append(name)
        elif not is_folder and is_picture(name):
            stem = Path(name).stem
            index[f"name/{fold(name)}"].append(name)
            index[f"stem/{fold(stem)}"].append(name)
            if stem.isascii() and stem.isdigit():
                index[f"number/{int(stem)}"].append(name)
    return index
