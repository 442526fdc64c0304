"""Caption files that are no UTF-8 are read or named; a column that is there twice is read twice."""

import numpy as np
import pytest
from PIL import Image

from sparc_ref.data import open_captions


@pytest.fixture
def photos(tmp_path):
    for n in range(2):
        Image.fromarray(np.full((9, 9, 3), 40 * n, np.uint8)).save(tmp_path / f"{n}.jpg")
    return tmp_path


def opened(photos, name, content):
    (photos / name).write_bytes(content)
    return open_captions(photos / name, size=4, progress=False)

ROWS = "filepath,title\n0.jpg,a dog\n1.jpg,ein Zebra für Ünal\n"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16"])
@pytest.mark.parametrize("rows", [ROWS, ROWS.replace("a dog", "\u72d7" * 200)], ids=["latin", "chinese"])
def test_utf16_with_and_without_a_byte_order_mark(photos, encoding, rows):
    data = opened(photos, "captions.csv", rows.encode(encoding))
    assert data.texts[1] == ("ein Zebra für Ünal",) and len(data) == 2
    assert data.report.converted["file is UTF-16, read as such"] == 1


@pytest.mark.parametrize(("content", "what"), [
    (b"PK\3\4" + bytes(99), "a zip archive, as spreadsheets are"), (b"PAR1" + bytes(99), "a Parquet table"),
    (b"\x1f\x8b\x08\0" + bytes(99), "a gzip archive"), (ROWS.encode("utf-32"), "UTF-32"),
    (b"\xd0\xcf\x11\xe0" + bytes(99), "an old Office document"), (b"SQLite format 3\0" + bytes(99), "an SQLite database"),
])
def test_a_caption_file_that_is_no_text(photos, content, what):
    with pytest.raises(ValueError, match=rf"captions.csv: expected text, got {what}; save it as CSV"):
        opened(photos, "captions.csv", content)


def test_a_zero_byte_costs_its_row_alone(photos):
    assert len(opened(photos, "captions.csv", b"filepath,title\n0.jpg,a\0dog\n1.jpg,a cat\n")) >= 1


def test_two_columns_of_one_name_are_both_read(photos):
    data = opened(photos, "captions.csv", b"image,caption,caption\n0.jpg,a dog,a big dog\n1.jpg,a cat,\n")
    assert data.texts == [("a dog", "a big dog"), ("a cat",)] and data.report.skipped["caption empty"] == 1
