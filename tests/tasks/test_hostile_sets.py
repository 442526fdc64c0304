"""Sets that mean harm: nothing is written, nothing outside is read, memory stays small, all else is measured and counted."""

import os
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from made_sets import Knows, png, put, webdataset
from made_shards import bomb, member, write

from sparc_ref.tasks import classification, retrieval
from sparc_ref.tasks.spec import open_data


def measured(task, spec):
    data, protocol = open_data(task, spec)
    return task.measure(Knows(), data, protocol, say=lambda *_: None)


def everything(root: Path) -> dict[str, int]:
    return {str(p.relative_to(root)): p.lstat().st_mtime_ns for p in sorted(root.rglob("*"))}


def hostile(suffix: str, text: bytes) -> list:
    """Members of every bad kind, between two sound samples."""
    pair = [member("evil.png", png(1)), member(f"evil.{suffix}", text)]
    return [
        member("a.png", png(0)), member(f"a.{suffix}", text),
        member("../up.png", png(1)), member(f"../up.{suffix}", text),
        member("/tmp/abs.png", png(1)), member("x/../../y.png", png(1)),
        member("l.png", kind=tarfile.SYMTYPE, linkname="/etc/passwd"), member(f"l.{suffix}", text),
        member("h.png", kind=tarfile.LNKTYPE, linkname="a.png"), member(f"h.{suffix}", text),
        member("dev.png", kind=tarfile.CHRTYPE), member("pipe.png", kind=tarfile.FIFOTYPE),
        member("bomb.png", bomb()), member(f"bomb.{suffix}", text),
        member("long.png", png(1)), member(f"long.{suffix}", b"1" * (2**20 + 1)),
        member("binary.png", png(1)), member(f"binary.{suffix}", b"\xff\xfe\x00"),
        member("code.pickle", b"cos\nsystem\n(S'true'\ntR."), member("code.npy", b"\x93NUMPY"),
        *pair[:1], *pair[:1], *pair[1:],
        member("z.png", png(0)), member(f"z.{suffix}", text),
    ]  # fmt: skip


LEFT_OUT = {"member's name leaves the shard": 4, "member is a link": 2, "member is a device": 1, "member is a pipe": 1,
            "image too large": 1, "several pictures of one key": 1}


@pytest.mark.parametrize("kind", ["classification", "retrieval"])
def test_a_hostile_shard(tmp_path, kind):
    names = ["number 0", "number 1"] if kind == "classification" else None
    root = webdataset(tmp_path / "w", [("png", png(0), "0")], shards=1, names=names)
    suffix, text = ("cls", b"0") if names else ("txt", b"of number 0")
    write(root / "test" / "0.tar", hostile(suffix, text))
    before, here = everything(tmp_path), sorted(os.listdir())
    tracemalloc.start()
    got = measured({"classification": classification, "retrieval": retrieval}[kind], f"webdataset:{root}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert got.examples == 2 and (got.numbers["top1"] == 1 if names else got.numbers["i2t_r1"] == 0.5)  # two alike tie
    what = "label" if names else "caption"
    assert got.counts.items() >= (LEFT_OUT | {f"{what} is too many bytes": 1, f"{what} without a picture": 2,
                                              f"member is neither picture nor {what}": 2}).items(), got.counts
    assert got.counts["label that is no number of a class" if names else "caption is not valid UTF-8"] == 1
    assert everything(tmp_path) == before and sorted(os.listdir()) == here and peak < 40 * 2**20
    assert not Path("/tmp/abs.png").exists()


@pytest.mark.parametrize("size", [2**40, 2**62])
def test_a_member_that_claims_more_than_there_is(tmp_path, size):
    root = webdataset(tmp_path / "w", [("png", png(0), "0")], shards=1, names=["number 0"])
    info = tarfile.TarInfo("giant.png")
    info.size = size
    sound = (root / "test" / "0.tar").read_bytes()[:4 * 512]      # a picture and its label, no end mark
    put(root / "test" / "0.tar", sound + info.tobuf(tarfile.GNU_FORMAT) + bytes(512))
    got = measured(classification, f"webdataset:{root}")
    assert got.examples == 1 and got.counts == {"shard is cut off": 1}


@pytest.mark.parametrize("data", [b"", b"\x1f\x8b" + bytes(2000), os.urandom(4096), bytes(1024)])
def test_a_shard_that_is_none(tmp_path, data):
    root = webdataset(tmp_path / "w", [("png", png(0), "0")], shards=1, names=["number 0"])
    put(root / "test" / "0.tar", data)
    with pytest.raises(ValueError, match=r"each with a \.cls of its name, found none"):
        measured(classification, f"webdataset:{root}")


@pytest.mark.parametrize("name", ["test/nshards.txt", "test/0.tar", "classnames.txt", "dataset_type.txt",
                                  "zeroshot_classification_templates.txt"])
def test_pipes_in_the_place_of_files_do_not_block(tmp_path, name):
    root = webdataset(tmp_path / "w", [("png", png(0), "0")], shards=1, names=["number 0"])
    (root / name).unlink(missing_ok=True)
    os.mkfifo(root / name)
    if name in ("dataset_type.txt", "zeroshot_classification_templates.txt"):  # as if they were not there
        assert measured(classification, f"webdataset:{root}").examples == 1
        return
    with pytest.raises(ValueError, match=Path(name).name):
        measured(classification, f"webdataset:{root}")


def test_a_list_that_is_too_long_is_not_read(tmp_path):
    root = webdataset(tmp_path / "w", [("png", png(0), "0")], shards=1, names=["number 0"])
    with open(root / "classnames.txt", "wb") as file:
        file.truncate(2**33)
    with pytest.raises(ValueError, match="at most 67,108,864 are read"):
        measured(classification, f"webdataset:{root}")


def test_folders_with_a_pipe_a_bomb_and_a_link_out(tmp_path):
    folder = tmp_path / "a" / "number_1"
    put(folder / "0.png", png(1))
    put(folder / "1.png", bomb())
    os.mkfifo(folder / "2.png")
    (folder / "3.png").symlink_to("/etc/passwd")
    (tmp_path / "a" / "number_2").symlink_to("/etc")
    got = measured(classification, f"folders:{tmp_path / 'a'}")
    assert got.examples == 1 and got.counts == {"image too large": 1, "not a regular file": 1, "path leaves the folder": 1,
                                                "links to folders, not followed": 1}
    assert got.chance["top1"] == 1 and "links to folders are no classes: number_2" in got.notes
    for part in folder.iterdir():
        part.unlink()
    (folder / "3.png").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="found none: 1 path leaves the folder"):
        measured(classification, f"folders:{tmp_path / 'a'}")
    (folder / "3.png").unlink()
    folder.rmdir()
    with pytest.raises(ValueError, match="found none, 1 links to folders are not followed"):
        measured(classification, f"folders:{tmp_path / 'a'}")


def test_names_cannot_draw_or_format(tmp_path):
    """Names with dollars, braces and control characters get into the pictures and the prompts as they are."""
    for name in ("number_0 $\\frac{", "number_1 {0.x} {c}\x07"):
        put(tmp_path / "a" / name / "0.png", png(int(name[7])))
    data, protocol = open_data(classification, f"folders:{tmp_path / 'a'}?prompt=clip7")
    got = classification.measure(Knows(), data, protocol, pictures=tmp_path, say=lambda *_: None)
    assert got.numbers["top1"] == 1 and (tmp_path / "predictions.png").stat().st_size > 1000
    assert np.isfinite(got.numbers["bare_top1"])
