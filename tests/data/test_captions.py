"""Image-caption files: the good is read, the bad is counted, nothing crashes."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparc_ref.data import open_captions


def jsonl(folder, *records):
    (folder / "captions.jsonl").write_bytes(b"\n".join(r if isinstance(r, bytes) else json.dumps(r).encode() for r in records))
    return folder


def read(data):
    return {path.name: captions for path, captions in zip(data.paths, data.texts)}


def test_jsonl_with_every_spelling_of_its_fields(folder):
    data = open_captions(jsonl(
        folder, {"image": "a.png", "caption": "one"}, {"file": "b.jpg", "captions": ["two", "  three \n x "]},
        {"path": "a.png", "captions": "four"}, b"", {"image": "sub/c d.png", "caption": "é ☃"}), size=16)
    assert read(data) == {"a.png": ("one", "four"), "b.jpg": ("two", "three x"), "c d.png": ("é ☃",)}
    assert data.name == "set" and len(data) == 3 and data.classes == ()
    assert data.report.kept == {"images": 3, "captions": 5} and not data.report.skipped
    assert data.report.converted == {"grey made RGB": 1}
    example = data[2]
    assert example.image.shape == (16, 16, 3) and example.image.dtype == np.uint8 and example.regions == ()
    assert example.key == "c d.png"
    assert json.loads(json.dumps(data.describe()))["captions"] == 5
    with pytest.raises(IndexError):
        data[3]


def test_paths_may_start_beside_the_file_or_in_a_given_folder(folder, tmp_path):
    data = open_captions(jsonl(folder, {"image": "images/a.png", "caption": "x"}, {"image": "a.png", "caption": "y"}))
    assert read(data) == {"a.png": ("x", "y")}, "two names of one file are one image"
    elsewhere = tmp_path / "list.jsonl"
    elsewhere.write_text('{"image": "a.png", "caption": "x"}')
    assert read(open_captions(elsewhere, images=folder / "images")) == {"a.png": ("x",)}
    with pytest.raises(ValueError, match="images: expected a folder"):
        open_captions(elsewhere, images=folder / "absent")
    with pytest.raises(ValueError, match=r"(?s)at least one image.*image missing: a\.png"):
        open_captions(elsewhere)


def test_coco(folder):
    content = {"images": [{"id": 1, "file_name": "a.png"}, {"id": "two", "file_name": "b.jpg"},
                          {"id": 3, "file_name": "sub/c d.png"}, {"id": 4}, "junk"],
               "annotations": [{"image_id": "two", "caption": "B"}, {"image_id": 1, "caption": "A"},
                               {"image_id": 1, "caption": "AA"}, {"image_id": 9, "caption": "lost"},
                               {"image_id": 9, "caption": "lost"}, {"caption": "x"}, 7,
                               {"image_id": [], "caption": "x"}]}
    (folder / "captions.json").write_text(json.dumps(content))
    data = open_captions(folder)
    assert read(data) == {"a.png": ("A", "AA"), "b.jpg": ("B",)}
    assert data.report.skipped == {"record without an id and a file_name": 2, "record without an image and a caption": 3,
                                   "caption of an image that is not listed": 2, "image without a usable caption": 1}
    (folder / "list.json").write_text(json.dumps([{"image": "a.png", "captions": ["x"]}, 5]))
    data = open_captions(folder / "list.json")
    assert read(data) == {"a.png": ("x",)} and data.name == "list" and sum(data.report.skipped.values()) == 1
    for bad in ("{", "5", '{"images": 3}', "[" * 100_000, '{"a": ' * 100_000):
        (folder / "captions.json").write_text(bad)
        with pytest.raises(ValueError, match="expected COCO captions"):
            open_captions(folder)


def test_csv_and_tsv(folder):
    lines = ["id,Caption,Image", '1,"red, ""big""', 'dog",a.png', "", "2,plain,b.jpg", "3,no", ""]
    (folder / "captions.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    data = open_captions(folder)
    assert read(data) == {"a.png": ('red, "big" dog',), "b.jpg": ("plain",)}
    assert data.report.skipped == {"wrong number of columns": 1} and "expected 3, got 2" in str(data.report)
    (folder / "plain.csv").write_text("a.png,first\nb.jpg,a dog, a cat\nb.jpg,\u2028line\x0bbreaks\u2028 are text\n")
    data = open_captions(folder / "plain.csv")
    assert read(data) == {"a.png": ("first",), "b.jpg": ("line breaks are text",)}
    assert data.report.skipped == {"wrong number of columns": 1} and "quote captions" in str(data.report)
    (folder / "t.tsv").write_text('a.png\t"quote, not closed\nb.jpg\tit\'s\nsub/c d.png\t\n')
    data = open_captions(folder / "t.tsv")
    assert read(data) == {"a.png": ('"quote, not closed',), "b.jpg": ("it's",)}
    assert data.report.skipped == {"caption empty": 1, "image without a usable caption": 1}
    assert data.report.converted == {"quote that does not close its cell, row read as it stands": 1}


def test_bad_lines_and_captions_are_counted(folder):
    data = open_captions(jsonl(
        folder, {"image": "a.png", "captions": ["good", "", "  \n", 5, None, "\ud800 half a pair"]}, b"{not json",
        b"[1, 2]", b'"text"', {"image": "a.png"}, {"caption": "x"}, {"image": 5.5, "caption": "x"},
        {"image": "", "caption": "x"},
        b'{"image": "a.png", "caption": "caf\xe9"}', b"[" * 100_000, {"image": "b.jpg", "caption": ""}, b"\xef\xbb\xbf",
        b'{"image": "a.png", "caption": ' + b"9" * 5000 + b"}"), size=8)
    assert read(data) == {"a.png": ("good",)}
    assert data.report.skipped == {
        "caption empty": 3, "caption is not text": 2, "caption is not valid UTF-8": 1, "line is not JSON": 4,
        "record without an image and a caption": 4, "image is not named by text": 2, "line is not UTF-8": 1,
        "image without a usable caption": 1}


def test_hostile_paths_are_skipped(folder, tmp_path, photo):
    secret = tmp_path / "secret.png"
    secret.write_bytes(photo())
    (folder / "images" / "link.png").symlink_to(secret)
    (folder / "images" / "up").symlink_to(tmp_path)
    (folder / "images" / "loop.png").symlink_to(folder / "images" / "loop.png")
    (folder / "images" / "inner.png").symlink_to(folder / "images" / "a.png")
    names = ["../secret.png", "../../secret.png", str(secret), "sub/../../../secret.png", "..\\secret.png", "C:\\secret.png",
             "\\\\host\\secret.png", "~/secret.png", "link.png", "up/secret.png"]
    absent = ["nul\0.png", "x" * 5000, "loop.png", "nowhere.png", "a.png/b", "\ud800.png"]
    records = [{"image": name, "caption": "x"} for name in [*names, *absent, "inner.png", "sub"]]
    data = open_captions(jsonl(folder, *records), size=8)
    assert read(data) == {"a.png": ("x",)}
    assert data.report.skipped["path leaves the folder"] == len(names)
    assert data.report.skipped["image missing"] == len(absent)
    assert data.report.skipped["not a regular file"] == 1
    assert data.report.skipped["captions of skipped images"] == len(names) + len(absent) + 1
    assert str(data.report).isprintable() or str(data.report).replace("\n", "").isprintable()


def test_bad_images_are_skipped_when_opened(folder, photo, bomb):
    images = folder / "images"
    jpeg = photo(format="JPEG")
    for name, content in {"bomb.png": bomb(), "cut.jpg": jpeg[:len(jpeg) // 2], "text.png": b"hello", "none.png": b""}.items():
        (images / name).write_bytes(content)
    records = [{"image": path.name, "captions": ["x", "y"]} for path in sorted(images.iterdir()) if path.is_file()]
    data = open_captions(jsonl(folder, *records), size=8)
    assert read(data) == {"a.png": ("x", "y"), "b.jpg": ("x", "y")}
    assert data.report.skipped == {"image too large": 1, "image truncated": 1, "not an image": 2,
                                   "captions of skipped images": 8}
    text = str(data.report)
    assert all(name in text for name in ("bomb.png", "cut.jpg", "text.png", "none.png"))
    assert text.splitlines()[0].endswith("kept 2 images, 4 captions")
    assert read(open_captions(folder, size=8, max_pixels=1200)) == read(data)
    with pytest.raises(ValueError, match=r"(?s)at least one image.*kept 0 images.*image too large"):
        open_captions(folder, size=8, max_pixels=1199)


@pytest.mark.parametrize("record", [b"{", {"image": "absent.png", "caption": "x"}, {"image": "a.png", "caption": ""},
                                    {"image": "../a.png", "caption": "x"}, {"image": "bad.png", "caption": "x"}], ids=str)
def test_strict_stops_at_the_first_problem(folder, record):
    (folder / "images" / "bad.png").write_bytes(b"no")
    good = {"image": "sub/c d.png", "caption": "x"}
    assert len(open_captions(jsonl(folder, good), strict=True)) == 1, "a conversion is no reason to stop"
    with pytest.raises(ValueError, match=r"captions\.jsonl: .*\(strict\)"):
        open_captions(jsonl(folder, good, record), strict=True)


def test_images_beyond_the_budget_are_decoded_again(folder):
    jsonl(folder, *({"image": name, "caption": "x"} for name in ("a.png", "b.jpg", "sub/c d.png")))
    kept, lazy = open_captions(folder, size=16), open_captions(folder, size=16, memory_mb=2 * 16 * 16 * 3 / 2**20)
    assert [image is None for image in lazy.images] == [False, False, True]
    assert all(np.array_equal(kept[i].image, lazy[i].image) for i in range(3))
    (folder / "images" / "sub" / "c d.png").unlink()
    assert kept[2].image.any()
    with pytest.raises(ValueError, match=r"c d\.png: image missing"):
        lazy[2]


def test_what_is_no_caption_file_is_a_clear_error(folder):
    with pytest.raises(ValueError, match=r"expected one of captions\.jsonl"):
        open_captions(folder)
    with pytest.raises(ValueError, match="found nothing there"):
        open_captions(folder / "absent.csv")
    (folder / "x.parquet").write_text("")
    with pytest.raises(ValueError, match=r"expected \.jsonl.*got '\.parquet'; save it as CSV.*docs/data\.md"):
        open_captions(folder / "x.parquet")
    (folder / "captions.jsonl").write_text("")
    with pytest.raises(ValueError, match="at least one image with a caption"):
        open_captions(folder)
    for option in ({"size": 0}, {"how": "fit"}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}: expected"):
            open_captions(folder, **option)


def test_utf_16_is_read_where_its_mark_says_so(folder):
    """As spreadsheets save "Unicode text"; without the mark it is read too: test_no_utf8.py."""
    (folder / "captions.csv").write_text("a.png,caf\u00e9\n", encoding="utf-16")
    data = open_captions(folder)
    assert read(data) == {"a.png": ("caf\u00e9",)} and data.report.converted == {"file is UTF-16, read as such": 1}
    (folder / "captions.csv").write_bytes(b"\xff\xfea\0,\0x")
    with pytest.raises(ValueError, match=r"expected UTF-16, as its first two bytes say.*docs/data\.md"):
        open_captions(folder)


@settings(max_examples=80, deadline=None)
@given(junk=st.one_of(st.binary(max_size=200), st.text(max_size=100).map(lambda t: t.encode("utf-8", "surrogatepass")),
                      st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda s: st.lists(s) | st.dictionaries(
                          st.sampled_from(["image", "caption", "captions", "file", "path"]), s), max_leaves=8
                      ).map(lambda v: json.dumps(v).encode())),
       suffix=st.sampled_from([".jsonl", ".csv", ".tsv", ".token"]))
def test_any_bytes_after_a_good_line(tmp_path_factory, junk, suffix):
    """Whatever follows, the good line is kept, and every other line is kept or counted."""
    folder = tmp_path_factory.mktemp("fuzz")
    from PIL import Image
    Image.new("RGB", (4, 4), "red").save(folder / "good.png")
    first = {".jsonl": b'{"image": "good.png", "caption": "good"}\n', ".csv": b"good.png,good\n", ".tsv": b"good.png\tgood\n",
             ".token": b"good.png#0\tgood\n"}
    (folder / f"x{suffix}").write_bytes(first[suffix] + junk)
    data = open_captions(folder / f"x{suffix}", size=4)
    assert data.texts[0][0] == "good" and data.paths[0].name == "good.png"
    if suffix == ".jsonl":
        lines = sum(bool(line.decode("utf-8", "surrogateescape").strip()) for line in junk.split(b"\n"))
        assert lines == 0 or data.report.skipped or sum(map(len, data.texts)) > 1
    str(data.report).encode()


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_as_a_whole_file(tmp_path_factory, junk):
    folder = tmp_path_factory.mktemp("fuzz")
    for suffix in (".jsonl", ".csv", ".tsv", ".json", ".txt", ".token"):
        (folder / f"x{suffix}").write_bytes(junk)
        with pytest.raises(ValueError, match="expected"):
            open_captions(folder / f"x{suffix}", size=4)


def test_opening_is_quiet_and_orderly(folder, capfd):
    """No output where the terminal is not one; the order of images is that of the file."""
    names = ["sub/c d.png", "a.png", "b.jpg"]
    data = open_captions(jsonl(folder, *({"image": name, "caption": name} for name in names)), size=8)
    assert [t[0] for t in data.texts] == names
    assert capfd.readouterr() == ("", "")


def test_real_coco(samples):
    data = open_captions(samples / "coco", size=64)
    assert len(data) == 76 and sum(map(len, data.texts)) == 380 and not data.report.skipped
    assert data.name == "coco" and len({data[i].image.tobytes() for i in range(76)}) == 76
    json.dumps(data.describe())
