"""Plant over 200 damaged or odd pictures, 200 caption files and 70 archives, read them all, and count.

    python bench/hostile_data.py [--write]                        # 6 s; --write puts the table into docs/data.md

hostile_inputs.py and hostile_strange.py say beside each thing what is right: what must be used, and what must be counted under
which reason. While they are read, every file that Python opens, lists or writes is watched; canaries lie outside. Exits with 1
where anything was lost, miscounted, opened outside or written.
"""

import contextlib
import hashlib
import json
import os
import re
import sys
import tempfile
from collections import Counter
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import hostile_inputs as planted
import hostile_strange as strange

from sparc_ref.data import PictureScenes, open_captions

PAGE = Path(__file__).resolve().parents[1] / "docs" / "data.md"
CAPTIONS = {"captions of skipped images", "caption empty", "caption is not text", "caption is not valid UTF-8", "malformed row",
            "wrong number of columns", "header again", "line is not UTF-8", "line is not JSON", "image is not named by text",
            "record without an image and a caption", "caption of an image that is not listed"}    # what counts rows or captions


class Tally:
    """Of one family: planted, things in them, used, left out and counted, wrong counts."""

    def __init__(self):
        self.planted = self.inside = self.used = self.left = self.wrong = 0

    def numbers(self):
        return self.planted, self.inside, self.used, self.left, self.wrong


def plant(inside, outside):
    """Write everything down.   -> [(kind, family, place, file name, right)]"""
    todo, families = [], {}
    for family, content, right in chain(planted.pictures(), strange.pictures()):
        families.setdefault(family, []).append((content, right))
    for number, (family, members) in enumerate(families.items()):
        place = inside / f"pictures{number}"
        place.mkdir()
        for n, (content, _) in enumerate(members):
            (place / f"{n}.jpg").write_bytes(content)
        (place / "good.png").write_bytes(planted.encoded())
        names = [*(f"{n}.jpg" for n in range(len(members))), "good.png"]
        lines = [{"image": name, "captions": ["one", "two"]} for name in names]
        (place / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
        todo.append(("pictures", family, place, "captions.jsonl", [right for _, right in members]))
    files = chain(planted.caption_files(outside), strange.caption_files(outside))
    for number, (family, name, content, *right) in enumerate(files):
        place = inside / f"captions{number}"
        (place / "folder").mkdir(parents=True)
        for i in range(8):
            (place / f"{i}.png").write_bytes(planted.encoded(size=(4, 4)))
        (place / "out.png").symlink_to(outside / "secret.png")
        (place / "up").symlink_to(outside)
        (place / "loop.png").symlink_to("loop.png")
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        todo.append(("caption files", family, place, name, right))
    for number, (family, content, *right) in enumerate(chain(planted.archives(), strange.archives())):
        place = inside / f"archives{number}"
        place.mkdir()
        (place / "a.zip").write_bytes(content)
        todo.append(("archives", family, place, "a.zip", right))
    return todo


def opened(make):
    """-> data set or None, message of the error."""
    try:
        return make(), ""
    except ValueError as error:
        return None, str(error)


def pictures(place, name, right, tally):
    """All pictures of a family lie in one folder, with two captions each, beside a good one."""
    data, _ = opened(lambda: open_captions(place / name, size=32))
    used = right.count("used")
    tally.planted, tally.inside, tally.used, tally.left = len(right), len(right), len(data) - 1, len(right) + 1 - len(data)
    skipped = Counter(data.report.skipped)
    lost = skipped.pop("captions of skipped images", 0)
    tally.wrong = (len(data) != used + 1) + (sum(map(len, data.texts)) != 2 * used + 2) + (lost != 2 * (len(right) - used))
    certain = Counter(r for r in right if isinstance(r, str) and r != "used")
    for reasons in (r for r in right if isinstance(r, set)):      # one of these must have been counted beyond the certain ones
        reason = next((r for r in sorted(reasons) if skipped[r] > certain[r]), None)
        tally.wrong += reason is None
        skipped[reason] -= reason is not None
    tally.wrong += sum(abs(skipped[r] - certain[r]) for r in skipped.keys() | certain.keys() if r)


def caption_file(place, name, right, tally):
    data, message = opened(lambda: open_captions(place / name, size=4))
    tally.planted += 1
    if len(right) == 1:                                           # a whole file that cannot be used is one thing left out
        tally.inside, tally.left = tally.inside + 1, tally.left + 1
        tally.wrong += data is not None or right[0] not in message or "docs/data.md" not in message
        return
    extra, skipped, converted = right
    if data is None:
        tally.wrong += 1
        return
    kept, left = data.report.kept["captions"], sum(n for reason, n in data.report.skipped.items() if reason in CAPTIONS)
    tally.inside, tally.used, tally.left = tally.inside + kept + left, tally.used + kept, tally.left + left
    tally.wrong += (kept != planted.GOOD + extra) + (data.report.skipped != skipped) + (data.report.converted != converted)


def archive(place, name, right, tally):
    data, message = opened(lambda: PictureScenes(place / name, objects=(1, 1), size=32))
    tally.planted += 1
    if len(right) == 1:                                           # a whole file that cannot be used is one thing left out
        tally.inside, tally.left = tally.inside + 1, tally.left + 1
        tally.wrong += data is not None or right[0] not in message
        return
    if data is None:
        tally.wrong += 1
        return
    used, left = len(data.classes), sum(data.report.skipped.values())
    tally.inside, tally.used, tally.left = tally.inside + used + left, tally.used + used, tally.left + left
    tally.wrong += (used != right[0]) + (data.report.skipped != right[1])


READERS = {"pictures": pictures, "caption files": caption_file, "archives": archive}


SEEN = ("open", "os.listdir", "os.scandir", "os.mkdir", "os.remove", "os.rename", "os.truncate", "os.symlink", "os.link",
        "shutil.rmtree", "subprocess.Popen", "socket.connect")


class Watch:
    """What Python opens, lists or changes while a place is read: anything planted elsewhere, or written at all."""

    def __init__(self, root):
        self.root, self.place = os.path.realpath(root), None
        self.outside, self.written = [], []
        sys.addaudithook(self.see)

    def see(self, event, arguments):
        if self.place is None or event not in SEEN:
            return
        name = arguments[0]
        if event == "open":
            mode, flags = arguments[1], arguments[2]
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes or (isinstance(mode, str) and set(mode) & set("wax+")):
                self.written.append(f"{event} {name}")
        elif event not in ("os.listdir", "os.scandir"):
            self.written.append(f"{event} {name}")
        if isinstance(name, (str, bytes, os.PathLike)):
            path = os.path.realpath(os.fsdecode(name))
            if path.startswith(self.root + os.sep) and not (path + os.sep).startswith(self.place + os.sep):
                self.outside.append(f"{event} {path}")
            if "secret" in os.path.basename(path):
                self.outside.append(f"{event} {path}")

    @contextlib.contextmanager
    def __call__(self, place):
        self.place = os.path.realpath(place)
        try:
            yield
        finally:
            self.place = None


def snapshot(root):
    """Every file below root: what it is, its size, time and content."""
    out = {}
    for path in sorted(root.rglob("*")):
        stat = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else ""
        out[path.relative_to(root).as_posix()] = (stat.st_mode, stat.st_size, stat.st_mtime_ns, content)
    return out


def peak_mib():
    found = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text()) if Path("/proc/self/status").exists() else None
    return int(found[1]) / 1024 if found else float("nan")


def run():
    """-> {(kind, family): Tally}, Watch, files changed, MiB"""
    tallies: dict[tuple[str, str], Tally] = {}
    with tempfile.TemporaryDirectory() as name:
        outside, inside = Path(name, "outside"), Path(name, "inside")
        for folder in (outside, inside):
            folder.mkdir()
            (folder / "secret.png").write_bytes(planted.encoded())
        todo = plant(inside, outside)
        watch, before = Watch(name), snapshot(Path(name))
        for kind, family, place, file, right in todo:
            with watch(place):
                READERS[kind](place, file, right, tallies.setdefault((kind, family), Tally()))
        after = snapshot(Path(name))
    return tallies, watch, sum(before.get(k) != after.get(k) for k in before.keys() | after.keys()), peak_mib()


def markdown(tallies, watch, changed, mib):
    lines = ["| planted | files | rows or pictures in them | used | counted as left out | wrong counts |",
             "| --- | ---: | ---: | ---: | ---: | ---: |"]
    for kind in READERS:
        of_kind = {family: tally.numbers() for (k, family), tally in tallies.items() if k == kind}
        lines += [f"| {kind}: {family} | " + " | ".join(f"{n:,}" for n in row) + " |" for family, row in of_kind.items()]
        lines.append(f"| **{kind}** | " + " | ".join(f"**{sum(column):,}**" for column in zip(*of_kind.values())) + " |")
    lines += ["", f"Files opened outside of what was named: {len(watch.outside)}. Files written, or changed by reading: "
              f"{len(watch.written) + changed}.",
              f"Largest memory of the process that planted and read them, libraries included: {mib:,.0f} MiB."]
    return "\n".join(lines)


def main(arguments):
    tallies, watch, changed, mib = run()
    table = markdown(tallies, watch, changed, mib)
    print(table)
    for event in (*watch.outside, *watch.written)[:20]:
        print(event)
    if "--write" in arguments:
        page, start, end = PAGE.read_text(), "<!-- bench/hostile_data.py -->\n", "\n<!-- end -->"
        PAGE.write_text(page[:page.index(start) + len(start)] + table + page[page.index(end):])
    return int(bool(sum(tally.wrong for tally in tallies.values()) or watch.outside or watch.written or changed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
