"""Text with delimiters: CSV, TSV and their kin, with a header that names the columns or with two columns and none.

The csv module is not used: its limit on a field is one for the whole process, and a quote that never closes takes every row
after it. Here such a quote costs at most its own row.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from ..load_report import LoadReport, shortened
from ..locate import Tree
from ..names import is_picture, is_url, valid
from .records import ACCEPTED, Row, chosen

DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "pipes"}
NUMBERED = re.compile(r"(.*)#\d+")                                # Flickr's .token: 1000092795.jpg#0


def read_table(path: Path, text: str, tree: Tree, report: LoadReport) -> Iterator[Row]:
    """The rows of a table.   ValueError where its first line is neither a header with known names nor a row"""
    text = text.replace("\r\n", "\n")
    delimiter, header = _layout(path, text.replace("\r", "\n"), tree)
    columns, image, captions, split = header or ((), 0, [1], None)
    width = len(columns) or 2
    if ignored := [name for c, name in enumerate(columns) if name and c not in (image, *captions, split)]:
        used = ", ".join(columns[c] for c in (image, *captions))
        report.notes.append(f"columns read: {shortened(used)}; ignored: {shortened(', '.join(ignored))}")

    def row_like(line: str) -> bool:
        cells = [cell.strip(' "') for cell in line.split(delimiter)]
        return any(is_picture(cell) or is_url(cell) for cell in cells) or (
            image < len(cells) and bool(cells[image]) and tree.knows(cells[image]))

    if text.count("\r") > text.count("\n"):                       # lines end with \r, but for some, and those within cells
        text = text.replace("\r", "\n")
    else:                                                         # a \r ends a line only where a row follows, as after `cat`
        text = re.sub(r"\r([^\r\n]*)", lambda rest: ("\n" if row_like(rest[1]) else " ") + rest[1], text)
    first = True
    for line, cells, flaw in records(text, delimiter, row_like):
        where = f"line {line}"
        if not any(cell.strip() for cell in cells) or (line == 1 and re.fullmatch(r"sep=.?", delimiter.join(cells).strip())):
            continue
        if first and not header and _like_a_name(cells[1], tree) > _like_a_name(cells[0], tree):
            image, captions = 1, [0]                              # Conceptual Captions: caption, then URL
        if first and not header:
            report.notes.append(f"no header; the picture is in column {image + 1}, the caption in column {captions[0] + 1}")
        if columns and _lower(cells) == columns:
            if not first:
                report.skip("header again", where)
            first = False
            continue
        first = False
        while len(cells) > width and not cells[-1].strip():
            cells.pop()                                           # spreadsheets end rows with empty columns
        if not all(map(valid, cells)):
            report.skip("line is not UTF-8", where)
        elif len(cells) > width or len(cells) <= max(image, *captions):
            note = f"expected {width}, got {len(cells)}"
            note += f"; quote captions that hold {DELIMITERS[delimiter]}" if len(cells) > width else ""
            report.skip("malformed row" if flaw else "wrong number of columns", where, f"{flaw}; {note}" if flaw else note)
        else:
            if flaw:
                report.convert(flaw, where)
            if len(cells) < width:
                report.convert("row shorter than the header", where)
            name = cells[image].strip()
            if not header and (numbered := NUMBERED.fullmatch(name)) and is_picture(numbered[1]):
                name = numbered[1]
            own = cells[split] if split is not None and split < len(cells) else None
            yield Row(where, name, [cells[c] for c in captions], own)


def _lower(cells: list[str]) -> tuple[str, ...]:
    return tuple(cell.strip("\ufeff \t").lower() for cell in cells)


def _like_a_name(cell: str, tree: Tree) -> int:
    """How much a cell looks like the name of a picture: 2 as it is written, 1 as there is such a file, 0 not at all."""
    cell = cell.strip()
    numbered = NUMBERED.fullmatch(cell)
    return 2 if is_picture(numbered[1] if numbered else cell) or is_url(cell) else int(bool(cell) and tree.knows(cell))


def _layout(path: Path, text: str, tree: Tree):
    """Delimiter, and (columns, image, captions, split) of the header or None.   By the first line that is not blank"""
    usual = {".csv": ",", ".tsv": "\t", ".token": "\t"}.get(path.suffix.lower(), "\t")
    if hint := re.match(r"sep=([,;\t|])\n", text):                # Excel's; the line itself is no row
        usual, text = hint[1], text[hint.end():]
    order = [usual, *(d for d in DELIMITERS if d != usual)]
    start = re.search(r"^.*\S.*$", text, re.MULTILINE)
    first = {d: next(records(start[0] + "\n", d, lambda line: False))[1] if start else [] for d in order}
    for delimiter, cells in first.items():
        names = _lower(cells)
        if found := chosen(list(names)):
            split = names.index("split") if "split" in names else None
            captions = [c for name in found[1] for c, other in enumerate(names) if other == name]  # a name may stand twice
            return delimiter, (names, names.index(found[0]), captions, split)
    for delimiter, cells in first.items():
        if len(cells) > 1 and any(_like_a_name(cell, tree) for cell in cells[:2]):
            return delimiter, None
    if not start:
        return usual, None
    shown = shortened(", ".join(cell.strip() for cell in first[usual]))
    raise ValueError(f"{path}: expected a header that names its columns, or two columns without one, name of the picture and "
                     f"caption; the first line is: {shown}. Accepted names: {ACCEPTED}. Formats: docs/data.md")


def records(text: str, delimiter: str, row_like: Callable[[str], bool]) -> Iterator[tuple[int, list[str], str]]:
    """(line, cells, flaw) of each record; lines end with a newline.   RFC 4180: a quoted cell may hold anything, " doubled

    Spaces around a quoted cell are dropped. flaw: how a record was read whose quotes do not follow the rule: as it stands, with
    its quotes. A quoted cell over several lines of which two look like rows is one whose quote was never closed.
    """
    d = re.escape(delimiter)
    doubled = re.compile(rf' *"([^"]*+(?:""[^"]*+)*+)" *(?={d}|\n|\Z)')
    escaped = re.compile(rf' *"([^"\\\n]*+(?:\\.[^"\\\n]*+)*+)" *(?={d}|\n|\Z)')
    plain = re.compile(rf"[^{d}\n]*+")

    def cells_at(at: int, quoted: re.Pattern, restore: Callable[[str], str]) -> tuple[list[str] | None, int]:
        cells = []
        while True:
            if match := quoted.match(text, at):
                cells.append(restore(match[1]))
            elif text.startswith('"', at):
                return None, at
            else:
                match = plain.match(text, at)
                assert match is not None
                cells.append(match[0])
            at = match.end()
            if not text.startswith(delimiter, at):
                return cells, at
            at += 1

    at, line = 0, 1
    while at < len(text):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        whole = text[at:end]
        flaw, stop = "", end
        if '"' not in whole:
            cells: list[str] | None = whole.split(delimiter)
        else:
            cells, stop = cells_at(at, doubled, lambda cell: cell.replace('""', '"'))
            if cells is not None and stop > end and _several(text, at, stop, row_like):
                cells = None
            if cells is None and '\\"' in whole:
                flaw = "quotes escaped by backslashes"
                cells, stop = cells_at(at, escaped, lambda cell: re.sub(r'\\(["\\])', r"\1", cell))
            if cells is None:
                flaw = "quote that does not close its cell, row read as it stands"
                cells, stop = whole.split(delimiter), end
        assert cells is not None
        yield line, cells, flaw
        line += text.count("\n", at, stop) + 1
        at = stop + 1


def _several(text: str, at: int, stop: int, row_like: Callable[[str], bool]) -> bool:
    """Whether two of these lines look like rows of their own."""
    found = 0
    while at < stop and found < 2:
        end = text.find("\n", at, stop)
        end = stop if end < 0 else end
        found += row_like(text[at:end])
        at = end + 1
    return found == 2

