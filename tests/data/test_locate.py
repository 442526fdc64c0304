"""Names to files: matched where one file fits, never outside, everything said."""

import json
import unicodedata
from pathlib import Path

import pytest

from sparc_ref.data import open_captions


def write(folder, names, photo):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(photo())
    return folder


def listed(folder, names, **options):
    """Open a list that gives each name the caption of its position."""
    (folder / "captions.jsonl").write_text("\n".join(json.dumps({"image": n, "caption": f"{i}"}) for i, n in enumerate(names)))
    return open_captions(folder, size=4, **options)


NFC, NFD = (unicodedata.normalize(form, "caf\u00e9.png") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(("there", "name", "change"), [
    ("sub/0.png", "sub\\0.png", "backslashes read as slashes"),
    (NFD, NFC, "other Unicode form of the name"), (NFC, NFD, "other Unicode form of the name"),
    ("Photo.PNG", "photo.png", "other case of the name"), ("Sub/A.png", "sub\\a.PNG", "other case of the name"),
    ("val2014/1.png", "1.png", "found in another folder"), ("place/1.png", "old/place/1.png", "found in another folder"),
    ("1.png", "old/place/1.png", "found in another folder"),
    ("17.png", "17", "name completed by its extension"), ("17.png", 17, "name completed by its extension"),
    ("val/photo.png", "photo", "name completed by its extension"),
    ("000000000139.png", 139, "number completed to a file's name"), ("00139.png", "139", "number completed to a file's name"),
    ("data/1.png", "/home/else/data/1.png", "absolute path, found by its end"),
    ("data/1.png", "C:\\else\\data\\1.png", "absolute path, found by its end"),
    ("a b.png", "https://x.org/p/a%20b.png?size=3", "URL, the local file of its name taken"),
])
@pytest.mark.parametrize("below", ["", "images/"])
def test_one_file_that_fits_is_taken_and_counted(tmp_path, photo, there, name, change, below):
    data = listed(write(tmp_path, [below + there, f"{below}other.png"], photo), [name])
    assert data.texts == [("0",)] and data.names[0].endswith(there.rpartition("/")[2])
    assert data.report.converted == {change: 1} and not data.report.skipped


@pytest.mark.parametrize(("there", "name", "reason"), [
    (["A.png", "a.PNG"], "a.png", "several files fit the name"),
    (["t/1.png", "v/1.png"], "1.png", "several files fit the name"),
    (["1.png", "1.jpg"], "1", "several files fit the name"), (["01.png", "001.png"], "1", "several files fit the name"),
    (["t/1.png"], "v/1.png", "image missing"), (["deep/deeper/1.png"], "1.png", "image missing"),
    (["10.png"], "1", "image missing"), (["1.png"], "../1.png", "path leaves the folder"),
    (["1.png"], "t/../1.png", "path leaves the folder"), (["1.png"], "/x/2.png", "path leaves the folder"),
    (["1.png"], "~/1.png", "path leaves the folder"),
    (["1.png"], "http://x.org/2.png", "picture is a URL, its file is not here"),
])
def test_no_guess_where_none_or_several_fit(tmp_path, photo, there, name, reason):
    data = listed(write(tmp_path, [*there, "good.png"], photo), [name, "good.png"])
    assert data.texts == [("1",)] and data.report.skipped == {reason: 1, "captions of skipped images": 1}


def test_the_exact_file_wins_over_all_that_are_like_it(tmp_path, photo):
    write(tmp_path, ["a.png", "A.png", "sub/a.png", NFC, NFD, "1", "1.png", "back\\slash.png"], photo)
    names = ["a.png", "A.png", "sub/a.png", NFC, NFD, "1", "1.png", "back\\slash.png"]
    data = listed(tmp_path, names)
    assert data.names == names and not data.report.converted


def test_two_names_are_one_picture_only_where_they_are_spellings_of_one(tmp_path, photo):
    write(tmp_path, ["Sub/A.png", "1.png"], photo)
    data = listed(tmp_path, ["Sub/A.png", "sub/a.png", "SUB\\a.png", "x/1.png", "y/1.png"])
    assert data.texts == [("0", "1", "2")]
    assert data.report.skipped == {"several names fit one file": 2, "captions of skipped images": 2}
    assert listed(tmp_path, ["1.png", "x/1.png"]).texts == [("0",)], "a guess never joins an exact name"
    assert listed(tmp_path, ["1.png", "/1.png"]).texts == [("0",)], "nor does the path of another machine"


def test_absolute_names_inside_the_folder_are_exact(tmp_path, photo):
    data = listed(write(tmp_path, ["sub/1.png"], photo), [str(tmp_path / "sub" / "1.png")])
    assert data.names == ["sub/1.png"] and not data.report.converted and not data.report.skipped


def test_links_that_stay_inside_are_followed_and_others_refused(tmp_path, photo):
    home = write(tmp_path / "set", ["blobs/abc", "plain/1.png"], photo)
    secret = write(tmp_path, ["secret.png"], photo) / "secret.png"
    (home / "images").mkdir()
    (home / "images" / "x.png").symlink_to("../blobs/abc")
    (home / "images" / "folder").symlink_to("../plain")
    (home / "images" / "out.png").symlink_to(secret)
    (home / "images" / "up").symlink_to(tmp_path)
    (home / "images" / "loop.png").symlink_to("loop.png")
    data = listed(home, ["x.png", "folder/1.png", "out.png", "OUT.png", "up/secret.png", "loop.png"])
    assert data.texts == [("0",), ("1",)] and data.names == ["x.png", "folder/1.png"] and data[0].key == "x.png"
    assert data.report.skipped == {"path leaves the folder": 2, "image missing": 2, "captions of skipped images": 4}


def test_linked_folders_that_leave_are_not_entered(tmp_path, photo, monkeypatch):
    """images/ as a link to elsewhere has to be named; so has what lies behind any other."""
    elsewhere = write(tmp_path / "elsewhere", ["1.png", "2.png"], photo)
    (elsewhere / "1.txt").write_text("secret")
    (elsewhere / "captions.csv").write_text("image,caption\n1.png,secret\n")
    home = write(tmp_path / "set", ["2.png"], photo)
    listings = []
    for name in ("images", "annotations", "00000", "train", "val"):
        (home / name).symlink_to(elsewhere)
    with pytest.raises(ValueError, match=r"a link that leaves"):
        open_captions(home, size=4)
    data = listed(home, ["1.png", "2.png", "00000/1.png"])
    assert data.texts == [("1",)] and data.report.skipped["path leaves the folder"] == 1
    assert "images is a link that leaves the folder" in str(data.report)
    assert listed(home, ["1.png"], images=home / "images").texts == [("0",)]
    (home / "captions.jsonl").unlink()
    for name in ("train", "val"):
        (home / name).unlink()
    (home / "2.txt").write_text("mine")
    real = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: listings.append(self.resolve()) or real(self))
    data = open_captions(home, size=4)
    assert data.texts == [("mine",)] and data.report.skipped == {"path leaves the folder": 3} and elsewhere not in listings


@pytest.mark.parametrize("given", ["snapshots/r1", "."])
def test_a_hub_cache(tmp_path, photo, given):
    """blobs/ beside snapshots/revision/ belongs to the data set, and so does its caption file, itself a link."""
    home = write(tmp_path / "datasets--x", ["blobs/abc"], photo)
    secret = write(tmp_path, ["secret.png"], photo) / "secret.png"
    (home / "blobs" / "def").write_text('{"file_name": "x.png", "text": "x"}\n{"file_name": "out.png", "text": "out"}\n')
    snapshot = home / "snapshots" / "r1"
    snapshot.mkdir(parents=True)
    (snapshot / "metadata.jsonl").symlink_to("../../blobs/def")
    (snapshot / "x.png").symlink_to("../../blobs/abc")
    (snapshot / "out.png").symlink_to(secret)
    data = open_captions(snapshot if given != "." else snapshot / "metadata.jsonl", size=4)
    assert data.texts == [("x",)] and data.report.skipped["path leaves the folder"] == 1


def test_a_folder_that_cannot_be_listed_is_no_crash(tmp_path, photo, monkeypatch):
    from sparc_ref.data import locate

    write(tmp_path, ["good.png"], photo)
    monkeypatch.setattr(locate.os, "scandir", lambda _: (_ for _ in ()).throw(PermissionError("no")))
    data = listed(tmp_path, ["good.png", "GOOD.png"])
    assert data.texts == [("0",)] and data.report.skipped["image missing"] == 1
