"""The ways in which people write captions down; each gives rows: where it stands, the picture's name, its captions, its split.

    records     the accepted names of fields and columns
    tables      CSV, TSV, pipes, Flickr's .token, Conceptual Captions: text with delimiters, with or without a header
    annotations JSON: COCO's, Karpathy's, lists of records, names with captions; and JSON lines
    beside      a folder with a text next to each picture, as img2dataset writes it
    discover    which of these a folder holds
docs/data.md shows one of each.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from ..load_report import LoadReport
from ..locate import Tree
from .annotations import is_document, read_json, read_lines
from .beside import read_pairs
from .records import Row
from .tables import read_table

HEAD = 200                                                        # bytes that tell UTF-16 from other text
NO_TEXT = {b"PK\3\4": "a zip archive, as spreadsheets are", b"PAR1": "a Parquet table", b"\x1f\x8b\x08\0": "a gzip archive",
           b"\x1f\x8b\x08\x08": "a gzip archive", b"\xd0\xcf\x11\xe0": "an old Office document", b"SQLi": "an SQLite database"}


def read_rows(source: Path, tree: Tree, report: LoadReport) -> Iterator[Row]:
    """The rows of a caption file, or of a folder with a text next to each picture.   ValueError where it holds none at all"""
    if source.is_dir():
        yield from read_pairs(source, tree, report)
        return
    text, suffix = decode(source, report), source.suffix.lower()
    if suffix in (".json", ".jsonl"):
        text = re.sub(r"\r(?=\s*\{)", "\n", text)                 # a line may end with \r alone
    if suffix == ".json" or (suffix == ".jsonl" and is_document(text)):
        yield from read_json(source, text, report)
    elif suffix == ".jsonl":
        yield from read_lines(source, text, report)
    else:
        yield from read_table(source, text, tree, report)


def decode(file: Path, report: LoadReport) -> str:
    """The text of a file: UTF-8, where bytes that are not stay recognisable; UTF-16 where its first two bytes say so, or where
    every second of its first bytes is 0.   ValueError for what is no text at all"""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error})") from error
    if data[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff") or b"\0\0\0" in (data[:3], data[1:4]) or data[:4] in NO_TEXT:
        raise ValueError(f"{file}: expected text, got {NO_TEXT.get(data[:4], 'UTF-32')}; save it as CSV, TSV or JSON in UTF-8. "
                         "Formats: docs/data.md")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        report.convert("file is UTF-16, read as such", file.name)
        try:
            return data.decode("utf-16", "surrogatepass")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: expected UTF-16, as its first two bytes say, got something else ({error.reason}); "
                             "save it as UTF-8. Formats: docs/data.md") from error
    zeros = [data[:HEAD][side::2].count(0) for side in (0, 1)]
    if min(zeros) == 0 and max(zeros) >= 4:
        report.convert("file is UTF-16, read as such", f"{file.name}, without a byte order mark")
        return data.decode("utf-16-be" if zeros[0] else "utf-16-le", "surrogatepass" if len(data) % 2 == 0 else "replace")
    return data.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\x1a").decode("utf-8", "surrogateescape")  # 1a: DOS ends files so
