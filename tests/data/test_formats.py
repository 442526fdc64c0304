"""The formats people have: each is read, and what in it cannot be used costs nothing else."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from sparc_ref.data import open_captions
from sparc_ref.data.formats.tables import records

CASES = Path(__file__).parent / "cases" / "captions"
UNCLOSED = "quote that does not close its cell, row read as it stands"


def read(data):
    return {path.name: captions for path, captions in zip(data.paths, data.texts)}


def table(folder, text, name="captions.csv", **options):
    (folder / name).write_text(text, newline="")
    return open_captions(folder / name, size=4, **options)


# ------------------------------------------------------------------------------------------------------------- the cases


def test_one_quote_that_never_closes_costs_no_other_row():
    data = open_captions(CASES / "quotes" / "one_quote.csv", size=8)
    texts = [text for captions in data.texts for text in captions]
    assert len(texts) == 1000 and sum("number" in text for text in texts) == 999
    assert data.report.converted == {UNCLOSED: 1} and "line 3" in str(data.report) and not data.report.skipped


def test_tsv_as_spreadsheets_write_it():
    data = open_captions(CASES / "quotes" / "excel.tsv", size=8)
    assert [captions for (captions,) in data.texts] == [
        'a sign that says "STOP"', '"quoted from the start', '5" pipe next to a 3" one', "plain", 'he said "hi", she left',
        "line one line two", "\u201ccurly\u201d quotes", 'ends with "']
    assert not data.report.skipped and not data.report.converted


@pytest.mark.parametrize("name", ["wide.csv", "metadata.jsonl", ""])
def test_columns_and_fields_by_their_usual_names(name):
    data = open_captions(CASES / "headers" / name, size=8)
    what = ("a red ball", "a blue cup", "a green leaf", "a yellow car")
    assert read(data) == {f"{n}.jpg": (text,) for n, text in enumerate(what)}
    assert not data.report.skipped
    if name == "wide.csv":
        assert data.report.notes == ["columns read: filepath, title; ignored: url"]


@pytest.mark.parametrize(("split", "pictures"), [
    (None, (0, 1, 4, 5)), ("train", (0, 1, 4, 5)), ("restval", (0, 1, 4, 5)), ("validation", (2, 6)), ("val", (2, 6)),
    ("test", (3, 7)), ("all", tuple(range(8)))])
def test_karpathy(split, pictures):
    data = open_captions(CASES / "karpathy" / "dataset_coco.json", split=split, size=8)
    assert [int(path.stem[-1]) for path in data.paths] == list(pictures)
    assert all(len(texts) == 5 for texts in data.texts) and data.texts[0][0].startswith("A ")
    assert data.splits == {"train": 4, "validation": 2, "test": 2} and not data.report.skipped
    assert data.report.kept["captions"] + data.report.kept["captions of other splits"] == 40


@pytest.mark.parametrize("folder", ["img2dataset", "img2dataset/00000"])
def test_img2dataset(folder):
    data = open_captions(CASES / folder, size=8)
    assert list(data.texts) == [(f"a {what}",) for what in (
        "red ball", "blue cup", "green leaf", "yellow car", "brown dog", "white boat", "black chair", "grey stone")]
    assert not data.report.skipped and not data.report.converted


# ---------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("dialect", ["excel", "excel-tab", "unix"])
@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.lists(st.text(st.characters(exclude_characters="\r\x00", exclude_categories=["Cs"]), max_size=8),
                              min_size=2, max_size=3), max_size=8))
@example(rows=[['"', '""'], ["a\nb", '"\n'], ["", " x "], ['","', "\t\n\t"]])
def test_whatever_the_csv_module_writes_is_read_back(dialect, rows):
    stream = io.StringIO(newline="")
    csv.writer(stream, dialect).writerows(rows)
    text = stream.getvalue().replace("\r\n", "\n")
    back = [cells for _, cells, flaw in records(text, csv.get_dialect(dialect).delimiter, lambda line: False)]
    assert back == [row if row != [""] else [] for row in rows]


@settings(max_examples=200, deadline=None)
@given(st.text('ab",\n\\ ', max_size=40))
@example('a,"b\nc,"d"\ne')
def test_no_line_is_lost_whatever_the_quotes(text):
    """Every line belongs to exactly one record, in order; records over several lines are quoted ones."""
    lines = text.split("\n")
    at = 1
    for line, cells, flaw in records(text, ",", lambda line: False):
        assert line == at
        spans = max(1, 1 + sum(cell.count("\n") for cell in cells))
        assert not flaw or spans == 1
        at += spans
    assert at - 1 in (len(lines), len(lines) - (lines[-1] == ""))


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
@pytest.mark.parametrize("bad", range(1, 6))
def test_a_quote_left_open_anywhere_costs_its_own_row_at_most(folder, name, bad):
    """Also where a later row holds quotes that would close it."""
    d = "," if name.endswith("csv") else "\t"
    rows = [f"a.png{d}plain {n}" for n in range(7)]
    rows[3] = f'a.png{d}"well ""quoted"" 3"'
    rows[4] = f'a.png{d}a pipe of 4"'
    rows[6] = f'a.png{d}"6 over\ntwo lines"'
    rows[bad] = f'b.jpg{d}"open {bad}'
    data = table(folder, "\n".join(rows) + "\n", name)
    good = {3: 'well "quoted" 3', 4: 'a pipe of 4"', 6: "6 over two lines"}
    assert read(data)["a.png"] == tuple(good.get(n, f"plain {n}") for n in range(7) if n != bad)
    assert read(data)["b.jpg"] == (f'"open {bad}',) and data.report.converted == {UNCLOSED: 1}
    assert f"line {bad + 1}" in str(data.report) and not data.report.skipped


def test_an_open_quote_before_a_comma_is_a_malformed_row(folder):
    data = table(folder, 'a.png,ok\nb.jpg,"red, never closed\na.png,fine\n')
    assert read(data) == {"a.png": ("ok", "fine")} and data.report.skipped == {"malformed row": 1}
    assert "line 2" in str(data.report)


def test_cells_have_no_largest_size_and_the_process_keeps_its_limit(folder):
    limit = csv.field_size_limit(1000)
    try:
        long = "word " * 100_000
        data = table(folder, f'image,caption\na.png,{long}\nb.jpg,"{long}"\n')
        assert csv.field_size_limit() == 1000
    finally:
        csv.field_size_limit(limit)
    assert [len(texts[0]) for texts in data.texts] == [len(long) - 1] * 2 and not data.report.skipped


@pytest.mark.parametrize("header", ["image,caption", "\ufefffilepath,TITLE", "Caption,x,File_Name", "raw_caption;path",
                                    "text\timage", "image_name| comment_number| comment", '"image","text"',
                                    " path , caption ,split ,"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_headers(folder, header, end):
    d = next(c for c in ",;\t|" if c in header)
    names = [cell.strip(' "\ufeff').lower() for cell in header.split(d)]
    row = dict.fromkeys(("image", "filepath", "file_name", "path", "image_name"), "a.png")
    row |= dict.fromkeys(("caption", "title", "raw_caption", "text", "comment"), "dog")
    data = table(folder, header + end + d.join(row.get(name, "") for name in names) + end, "t.csv")
    assert read(data) == {"a.png": ("dog",)} and not data.report.skipped


@pytest.mark.parametrize(("text", "shown"), [
    ("picture,description\na.png,dog\n", "picture, description"), ("image,description\na.png,dog\n", "image, description"),
    ("id;words\n1;dog\n", "id;words"), ("hello\n", "hello")])
def test_an_unknown_header_is_shown_with_the_accepted_names(folder, text, shown):
    with pytest.raises(ValueError) as caught:
        table(folder, text)
    message = str(caught.value)
    assert shown in message and "image, filepath, file_name, path" in message and "raw_caption" in message
    assert "docs/data.md" in message and message.count("\n") == 0


def test_rows_of_other_widths_are_used_or_counted(folder):
    data = table(folder, "image,caption,url\na.png,short\nb.jpg,empty columns behind,u,,\na.png\nb.jpg,one,u,more\n"
                         "image,caption,url\n")
    assert read(data) == {"a.png": ("short",), "b.jpg": ("empty columns behind",)}
    assert data.report.converted == {"row shorter than the header": 1}
    assert data.report.skipped == {"wrong number of columns": 2, "header again": 1}


def test_backslash_escapes_and_spaces_around_quotes(folder):
    data = table(folder, 'image,caption\na.png,"he said \\"sit\\", twice"\nb.jpg, "a dog, red" \n')
    assert read(data) == {"a.png": ('he said "sit", twice',), "b.jpg": ("a dog, red",)}
    assert data.report.converted == {"quotes escaped by backslashes": 1} and not data.report.skipped


def test_a_split_column_is_followed(folder):
    text = "image,caption,split\na.png,one,train\nb.jpg,two,val\na.png,three,train\n"
    assert read(table(folder, text)) == {"a.png": ("one", "three")}
    assert read(table(folder, text, split="validation")) == {"b.jpg": ("two",)}
    with pytest.raises(ValueError, match="split: expected one of train, validation or all, the splits that it has, got test"):
        table(folder, text, split="test")
    spelled = {"train": "train restval Train", "validation": "val valid validation dev DEV", "test": "test Test"}
    text = "image,split,caption\n" + "".join(f"a.png,{word},{word}\n" for words in spelled.values() for word in words.split())
    for split, words in spelled.items():
        data = table(folder, text, split=split)
        assert data.texts == [tuple(words.split())] and data.splits == {"train": 3, "validation": 5, "test": 2}
    plain = table(folder, "image,caption,split\na.png,one,7\nb.jpg,two,8\n")
    assert len(plain) == 2 and plain.splits == {}


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.json"])
def test_both_columns_of_captions_are_read_and_the_split_of_each_record(folder, name):
    """"caption" and "captions" are two; of other names, and of names for the picture, the first in the order of the list."""
    rows = [{"path": "gone.png", "captions": "two", "image": "a.png", "title": "no", "caption": "one", "split": "train"},
            {"path": "gone.png", "captions": "four", "image": "b.jpg", "title": "no", "caption": "three", "split": "dev"}]
    text = "".join(json.dumps(row) + "\n" for row in rows) if name != "x.json" else json.dumps(rows)
    if name == "x.csv":
        text = "".join(",".join(row) + "\n" for row in (rows[0], *(row.values() for row in rows)))
    for split, wanted in (("train", {"a.png": {"one", "two"}}), ("validation", {"b.jpg": {"three", "four"}}),
                          ("all", {"a.png": {"one", "two"}, "b.jpg": {"three", "four"}})):
        data = table(folder, text, name, split=split)
        assert {picture: set(texts) for picture, texts in read(data).items()} == wanted
        assert all(len(texts) == 2 for texts in data.texts) and data.splits == {"train": 1, "validation": 1}


def test_of_two_fields_that_differ_in_case_the_first_is_read(folder):
    data = table(folder, '{"Image": "a.png", "image": "b.jpg", "TITLE": "one", "title": "two"}\n', "x.jsonl")
    assert read(data) == {"a.png": ("one",)}


LEFT_OUT = ("malformed row", "wrong number of columns", "line is not UTF-8", "header again", "caption empty",
            "line is not JSON", "captions of skipped images", "image is not named by text", "caption is not text",
            "record without an image and a caption", "caption is not valid UTF-8")


@settings(max_examples=80, deadline=None)
@given(kinds=st.lists(st.integers(0, 12), max_size=12), tabs=st.booleans(), header=st.booleans())
def test_the_counts_of_a_table_add_up_to_its_rows(tmp_path_factory, kinds, tabs, header):
    """Whatever is wrong with rows, and wherever: each is kept or counted once."""
    folder, d = tmp_path_factory.mktemp("sum"), "\t" if tabs else ","
    Image.new("RGB", (2, 2)).save(folder / "a.png")
    bad = ["a.png;fine", 'a.png;"quoted; cell"', 'a.png;"open', "a.png;5\" wide", 'a.png;"over\ntwo"', "gone.png;x",
           "../a.png;x", "a.png; ", "a.png", "a.png;x;y", "A.PNG;x", "a.png;caf\udce9", "image;caption"]
    rows = ["a.png;first", *(bad[kind] for kind in kinds), "a.png;last"]
    text = "\n".join(["image;caption"] * header + rows).replace(";", d)
    (folder / "t.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    report = open_captions(folder / "t.csv", size=2).report
    counted = sum(report.skipped[reason] for reason in LEFT_OUT)
    assert report.kept["captions"] + counted == len(rows), report


@settings(max_examples=60, deadline=None)
@given(kinds=st.lists(st.integers(0, 9), max_size=12))
def test_the_counts_of_json_lines_add_up_to_the_lines(tmp_path_factory, kinds):
    folder = tmp_path_factory.mktemp("sum")
    Image.new("RGB", (2, 2)).save(folder / "a.png")
    bad = ['{"image": "a.png", "caption": "fine"}', "{", "[]", '{"image": "a.png"}', '{"image": 2.5, "text": "x"}',
           '{"path": "gone.png", "title": "x"}', '{"image": "a.png", "caption": " "}', '{"image": "a.png", "caption": 4}',
           '{"file": "A.png", "caption": "\\ud800"}', '{"image": "http://x.org/a.png", "caption": "x"}']
    lines = [bad[0], *(bad[kind] for kind in kinds)]
    (folder / "t.jsonl").write_text("\n".join(lines))
    report = open_captions(folder / "t.jsonl", size=2).report
    assert report.kept["captions"] + sum(report.skipped[reason] for reason in LEFT_OUT) == len(lines), report


# -------------------------------------------------------------------------------------------------------- further formats


def test_flickr_token_files(folder):
    text = "a.png#0\tTwo dogs .\na.png#1\tA \"dog\" .\nb.jpg#0\tA cat .\n"
    for name in ("results_20130124.token", "Flickr8k.token.txt"):
        assert read(table(folder, text, name)) == {"a.png": ("Two dogs .", 'A "dog" .'), "b.jpg": ("A cat .",)}


def test_conceptual_captions(folder, photo):
    text = "a dog\thttp://x.org/1/a.png\na cat\thttps://x.org/2/z.jpg?w=1\na cup\thttp://y.org/b.jpg\nb cup\thttp://z.org/b.jpg\n"
    data = table(folder, text, "Train_GCC-training.tsv")
    assert read(data) == {"a.png": ("a dog",)}, "two URLs that end alike are no guess to make"
    assert data.report.skipped == {"picture is a URL, its file is not here": 1, "several names fit one file": 2,
                                   "captions of skipped images": 3}
    with pytest.raises(ValueError, match=r"(?s)picture is a URL, its file is not here.*img2dataset.*docs/data\.md"):
        table(folder, "a dog\thttp://x.org/1/z.png\n", "t.tsv")
    for name, content in (("u.csv", "URL,TEXT\nhttp://x.org/z.png,a dog\n"),
                          ("u.jsonl", '{"url": "http://x.org/z.png", "caption": "a dog"}\n')):
        with pytest.raises(ValueError, match="picture is a URL, its file is not here"):
            table(folder, content, name)


@pytest.mark.parametrize(("name", "own", "other"), [("t.csv", ",", "\t"), ("t.tsv", "\t", ","), ("t.token", "\t", ","),
                                                    ("t.txt", "\t", ",")])
def test_where_two_delimiters_would_do_the_ending_decides(folder, name, own, other):
    """Of a URL it cannot be told where it ends."""
    data = table(folder, f"http://x.org/a.png{own}red{other} big\nhttp://x.org/b.jpg{own}blue\n", name)
    assert read(data) == {"a.png": (" ".join(f"red{other} big".split()),), "b.jpg": ("blue",)} and not data.report.skipped


def test_coco_over_several_folders(tmp_path, photo):
    for name in ("train2014/1.jpg", "val2014/2.jpg", "images/3.jpg", "train2014/4.jpg", "val2014/4.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(photo(format="JPEG"))
    (tmp_path / "annotations").mkdir()
    for split, ids in (("train", (1, 3, 4)), ("val", (2,))):
        (tmp_path / "annotations" / f"captions_{split}2014.json").write_text(json.dumps({
            "images": [{"id": n, "file_name": f"{n}.jpg"} for n in ids],
            "annotations": [{"image_id": str(n), "caption": f"number {n}"} for n in ids]}))
        (tmp_path / "annotations" / f"instances_{split}2014.json").write_text("{}")
    train, val = open_captions(tmp_path, size=4), open_captions(tmp_path, size=4, split="validation")
    assert read(train) == {"1.jpg": ("number 1",), "3.jpg": ("number 3",)} and read(val) == {"2.jpg": ("number 2",)}
    assert train.report.skipped == {"several files fit the name": 1, "captions of skipped images": 1}
    assert train.report.converted["id is a number here and text there"] == 3
    assert len({train.name, val.name}) == 2
    with pytest.raises(ValueError, match="expected one of train, validation"):
        open_captions(tmp_path, size=4, split="test")


def test_an_imagefolder_with_a_folder_for_each_split(tmp_path, photo):
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "1.png").write_bytes(photo())
        (tmp_path / split / "metadata.csv").write_text(f"file_name,text\n1.png,{split}\n")
    assert open_captions(tmp_path, size=4).texts == [("train",)]
    assert open_captions(tmp_path, size=4, split="val").texts == [("validation",)]


@pytest.mark.parametrize(("name", "content"), [
    ("x.json", [{"image": "a.png", "caption": ["dog", "big dog"]}]), ("x.json", {"a.png": ["dog", "big dog"]}),
    ("x.json", {"images": [{"file_name": "a.png", "captions": ["dog", "big dog"]}]}),
    ("x.json", {"annotations": [{"file_name": "a.png", "caption": "dog"}, {"file_name": "a.png", "text": "big dog"}]}),
    ("x.json", '{"Image": "a.png", "caption": "dog"}\n{"path": "a.png", "title": "big dog"}\n'),
    ("x.jsonl", '[\n{"image": "a.png", "captions": ["dog",\n "big dog"]}]'),
    ("x.json", {"images": [{"filename": "a.png", "sentences": [{"raw": "dog"}, {"raw": "big dog"}]}]})])
def test_json_in_its_shapes(folder, name, content):
    data = table(folder, content if isinstance(content, str) else json.dumps(content), name)
    assert read(data) == {"a.png": ("dog", "big dog")} and not data.report.skipped


def test_unknown_json_says_what_it_found_and_what_is_accepted(folder):
    with pytest.raises(ValueError, match=r"got an object with foo, bar\. Formats: docs/data\.md"):
        table(folder, '{"foo": 1, "bar": 2}', "x.json")
    with pytest.raises(ValueError, match=r"(?s)found photo, words.*Accepted names: for the picture image, .*raw_caption"):
        table(folder, '{"photo": "a.png", "words": "x"}', "x.jsonl")


def test_karpathy_records_that_are_broken_are_counted(folder):
    data = table(folder, json.dumps({"images": [
        {"filename": "a.png", "sentences": [{"raw": "dog"}, {"tokens": ["x"]}, 7], "split": "train"}, {"filename": "b.jpg"}, 5,
        {"filename": 3, "sentences": []},
        {"filename": "b.jpg", "filepath": "none", "sentences": [{"raw": "x"}], "split": "odd"}]}), "dataset.json")
    assert read(data) == {"a.png": ("dog",)}
    assert data.report.skipped == {"record without an image and a caption": 3, "caption is not text": 2}
    assert data.report.kept["captions of other splits"] == 1


def test_pictures_with_texts_beside_them(tmp_path, photo):
    shard = tmp_path / "00001"
    shard.mkdir()
    secret = tmp_path.parent / f"{tmp_path.name}-secret.txt"
    secret.write_text("secret")
    for key in ("1", "2", "3", "4", "5", "6", "7"):
        (shard / f"{key}.jpg").write_bytes(photo(format="JPEG"))
    (shard / "1.txt").write_text("one\ncaption")
    (shard / "1.json").write_text('{"caption": "not this"}')
    (shard / "2.txt").write_text("first\n\nsecond\n")
    (shard / "3.json").write_text('{"caption": "three", "status": "success"}')
    (shard / "4.json").write_text("{")
    (shard / "5.txt").symlink_to(secret)
    (shard / "6.txt").mkdir()
    (shard / "8.txt").write_text("failed")
    (shard / "9.json").write_text('{"key": "9", "status": "failed_to_download"}')
    (shard / "2.png").write_bytes(photo())
    (shard / "1b.JPG").write_bytes(photo(format="JPEG"))
    (shard / "1b.TXT").write_text("\xe9", encoding="latin-1")
    (tmp_path / "00001_stats.json").write_text('{"count": 9}')
    (tmp_path / "up").symlink_to(tmp_path.parent)
    data = open_captions(tmp_path, size=4)
    assert read(data) == {"1.jpg": ("one caption",), "3.jpg": ("three",)}
    assert data.report.skipped == {
        "several pictures of one key": 1, "picture without a caption": 2, "path leaves the folder": 2,
        "caption file unreadable": 1, "download without a picture": 2, "caption is not valid UTF-8": 1,
        "image without a usable caption": 1}


def test_every_text_beside_a_picture_is_a_caption(tmp_path, photo):
    """Each line of a text alone; with a JSON beside it, as img2dataset writes it, the text is one. A list is several."""
    (tmp_path / "00000").mkdir()
    for place, key in ((tmp_path, "top"), *((tmp_path / "00000", key) for key in ("lines", "whole", "list", "text"))):
        (place / f"{key}.png").write_bytes(photo())
    (tmp_path / "top.txt").write_text("at the top")
    for name, text in {"lines.txt": "one\r\n\r\n two \nthree\n", "whole.txt": "not\nthree\nlines", "whole.json": "{}",
                       "list.json": '{"captions": ["a", "b"], "title": "no"}', "text.json": '{"text": "c"}'}.items():
        (tmp_path / "00000" / name).write_bytes(text.encode())
    assert read(open_captions(tmp_path, size=4)) == {
        "top.png": ("at the top",), "lines.png": ("one", "two", "three"), "whole.png": ("not three lines",),
        "list.png": ("a", "b"), "text.png": ("c",)}


def test_a_folder_with_several_files_or_none_says_so(folder):
    for name in ("first.csv", "second.csv"):
        (folder / name).write_text("image,caption\na.png,x\n")
    with pytest.raises(ValueError, match=r"several files that may be meant, name one: first\.csv, second\.csv\. Formats: docs"):
        open_captions(folder)
    (folder / "second.csv").unlink()
    assert len(open_captions(folder, size=4)) == 1, "the only one is meant"
    (folder / "captions.jsonl").write_text('{"image": "b.jpg", "caption": "x"}')
    (folder / "metadata.csv").write_text("image,caption\na.png,x\n")
    data = open_captions(folder, size=4)
    assert read(data) == {"b.jpg": ("x",)} and data.report.notes == ["there too, not read: metadata.csv"]


def test_a_folder_of_what_is_not_read_says_what_helps(tmp_path):
    (tmp_path / "00000.tar").write_bytes(b"")
    (tmp_path / "00000.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"found none \(its \.parquet: save it as CSV; its \.tar: unpack it\)\. Formats"):
        open_captions(tmp_path)


def test_a_file_for_each_split(folder):
    for name, picture in (("train.csv", "a.png"), ("val.csv", "b.jpg"), ("my_test.csv", "sub/c d.png")):
        (folder / name).write_text(f"image,caption\n{picture},x\n")
    assert list(read(open_captions(folder, size=4))) == ["a.png"]
    for split, picture in (("train", "a.png"), ("validation", "b.jpg"), ("test", "c d.png")):
        asked, own = open_captions(folder, size=4, split=split), open_captions(folder, size=4, own_split=split)
        assert list(read(asked)) == list(read(own)) == [picture] and asked.split == own.split == split
        assert set(asked.splits) == {"train", "validation", "test"}


def test_a_caption_file_that_is_found_must_lie_in_the_folder(folder, tmp_path):
    outside = tmp_path / "outside.csv"
    outside.write_text("image,caption\na.png,x\n")
    (folder / "captions.csv").symlink_to(outside)
    with pytest.raises(ValueError, match="a link that leaves"):
        open_captions(folder)


# ------------------------------------------------------------------------------------------- line ends, repeats and depth


def pictures(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)


@pytest.mark.parametrize("header", ["image,caption", ""])
@pytest.mark.parametrize(("body", "texts"), [
    ("0.jpg,a dog\r1.jpg,a cat\r2.jpg,a cow\n", ("a dog", "a cat", "a cow")),      # the last line alone ends with \n
    ('0.jpg,"a dog\nwith a ball"\r1.jpg,a cat\r2.jpg,a cow\r', ("a dog with a ball", "a cat", "a cow")),  # Excel for the Mac
    ("0.jpg,a dog\n1.jpg,a cat\r2.jpg,a cow\r", ("a dog", "a cat", "a cow")),      # two files, joined by cat
    ("0.jpg,a dog\r with a ball\n1.jpg,a cat\r\n2.jpg,a cow\r\r\n", ("a dog with a ball", "a cat", "a cow"))])
def test_no_row_is_lost_to_its_line_end(tmp_path, header, body, texts):
    pictures(tmp_path, "0.jpg", "1.jpg", "2.jpg")
    start = header and header + ("\n" if "\n1.jpg" in body else "\r")
    data = table(tmp_path, start + body)
    assert read(data) == {f"{n}.jpg": (text,) for n, text in enumerate(texts)}
    assert not data.report.skipped and not data.report.converted


def test_json_lines_that_end_with_a_carriage_return(tmp_path):
    pictures(tmp_path, "0.jpg", "1.jpg")
    data = table(tmp_path, '{"image": "0.jpg", "caption": "a"}\r{"image": "1.jpg", "caption": "b"}\r', "captions.jsonl")
    assert read(data) == {"0.jpg": ("a",), "1.jpg": ("b",)} and not data.report.skipped


@pytest.mark.parametrize(("name", "text"), [
    ("captions.json", '{"0.jpg": "a", "1.jpg": ["b"], "0.jpg": ["c", "d"]}'),
    ("captions.jsonl", '{"image": "0.jpg", "caption": "a", "caption": ["c", "d"]}\n{"image": "1.jpg", "caption": "b"}\n')])
def test_a_name_twice_in_one_json_object_loses_nothing(tmp_path, name, text):
    pictures(tmp_path, "0.jpg", "1.jpg")
    assert read(table(tmp_path, text, name)) == {"0.jpg": ("a", "c", "d"), "1.jpg": ("b",)}


def test_pictures_two_folders_down_are_counted(tmp_path):
    for place in (".", "shard", "shard/deep"):
        pictures(tmp_path, f"{place}/0.jpg")
        (tmp_path / place / "0.txt").write_text("a dog")
    pictures(tmp_path, "shard/deep/er/1.jpg")
    data = open_captions(tmp_path, size=4)
    assert len(data) == 2 and data.report.skipped == {"folder too deep, its pictures not read": 2}


def test_a_picture_and_its_text_in_two_unicode_forms(tmp_path):
    pictures(tmp_path, "cafe\u0301.jpg")
    (tmp_path / "caf\u00e9.txt").write_text("a cup")
    data = open_captions(tmp_path, size=4)
    assert data.texts == [("a cup",)] and not data.report.skipped
