"""Tar shards: what is found in them, what is counted, and that nothing hostile in them does anything."""

import json
import os
import tarfile
from collections import Counter

import numpy as np
import pytest
from made_shards import bomb, caption, member, picture, shards, sound, write

from parity.trainer.data import shards as module
from parity.trainer.data.shards import ShardData, expand, open_shards
from sparc_ref.data.images import read_image
from sparc_ref.data.load_report import Unusable
from sparc_ref.data.tar import MAX_NAME, read_shard

LONG = "folder/" + "x" * 180 + "/one"
BAD = {                                                   # members that are left out, each beside sound samples, and the reason
    "member is a link": [member("a.png", kind=tarfile.SYMTYPE, linkname="/etc/passwd"),
                         member("b.png", kind=tarfile.LNKTYPE, linkname="000001.png")],
    "member is a device": [member("c.png", kind=tarfile.CHRTYPE), member("d.png", kind=tarfile.BLKTYPE)],
    "member is a pipe": [member("e.png", kind=tarfile.FIFOTYPE)],
    "member's name leaves the shard": [member("../up.png", picture(1)), member("/abs.txt", b"x"), member("a/../../b.txt")],
    "member is neither picture nor caption": [member("000001.npy", b"\x93NUMPY"), member("f.pickle", b"cos\nsystem\n")],
    "caption without a picture": [member("g.txt", b"alone")],
    "picture without a caption": [member("h.png", picture(2))],
    "several pictures of one key": [member("i.png", picture(3)), member("i.jpg", picture(4)), member("i.txt", b"two")],
    "picture is empty": [member("j.png", b""), member("j.txt", b"nothing")],
    "caption is too many bytes": [member("k.png", picture(5)), member("k.txt", b"x" * (2**20 + 1))],
    "member is of a kind that is not read": [member("l.png", kind=b"V")],
}  # fmt: skip
EXPECTED = {reason: len(members) for reason, members in BAD.items()} | {
    "several pictures of one key": 1, "picture is empty": 1, "caption is too many bytes": 1}


def test_every_kind_of_member_is_counted(tmp_path):
    members = sound(0)
    for n, bad in enumerate(BAD.values()):
        members += [*bad, *sound(n + 1)]
    members += [member("folder", kind=tarfile.DIRTYPE), *sound(50, LONG), *sound(51, "ключ/" + "ü" * 120)]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        found = read_shard(write(tmp_path / "a.tar", members, form))
        assert found.skipped == Counter(EXPECTED), found.skipped
        assert [s.key for s in found.samples] == [f"{n:06d}" for n in range(len(BAD) + 1)] + [LONG, "ключ/" + "ü" * 120]
        assert {s.kind for s in found.samples} == {"txt"}
        assert {s.kind for s in read_shard(tmp_path / "a.tar", prefer="json").samples} == {"json"}


def test_names_and_sizes_are_bounded(tmp_path):
    huge = member("x" * (MAX_NAME + 5) + ".png", picture(0))
    found = read_shard(write(tmp_path / "a.tar", [huge, *sound(1)]))
    assert found.skipped["name is too long"] == 1 and [s.key for s in found.samples][-1] == "000001"
    info, _ = member("bomb.png")
    info.size = 2**40                                     # claims a terabyte
    path = tmp_path / "b.tar"
    before = b"".join(i.tobuf() + d + bytes(-len(d) % 512) for i, d in sound(1))
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path.write_bytes(before + info.tobuf(form) + bytes(4096))
        found = read_shard(path)
        assert found.skipped["shard is cut off"] == 1 and len(found.samples) == 1
    info.size = -1024                                     # would send a reader back for ever
    path.write_bytes(before + info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    found = read_shard(path)
    assert found.skipped == {"header is damaged: the rest of the shard is not read": 1} and len(found.samples) == 1


def test_damage_ends_a_shard_and_what_came_before_stays(tmp_path):
    whole = write(tmp_path / "a.tar", [m for n in range(5) for m in sound(n)]).read_bytes()
    each = (whole.index(b"000001.png") - whole.index(b"000000.png"))
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[: 3 * each + 700])
    found = read_shard(cut)
    assert len(found.samples) == 3 and found.skipped["shard is cut off"] == 1
    cut.write_bytes(whole[: 2 * each] + b"\xff" * 512 + whole[2 * each + 512 :])
    found = read_shard(cut)
    assert len(found.samples) == 2 and found.skipped == {"header is damaged: the rest of the shard is not read": 1}
    cut.write_bytes(b"")
    assert read_shard(cut).skipped == {"shard is cut off": 1}
    cut.write_bytes(b"\x1f\x8b" + whole)
    assert not read_shard(cut).samples and "compressed" in next(iter(read_shard(cut).skipped))


def test_braces_and_wildcards(tmp_path):
    assert expand("a{08..11}.tar") == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert expand("{a,b}{1..2}") == ["a1", "a2", "b1", "b2"]
    for name in ("y.tar", "x.tar", "z.txt"):
        (tmp_path / name).touch()
    assert expand(f"{tmp_path}/*.tar") == [f"{tmp_path}/x.tar", f"{tmp_path}/y.tar"]
    with pytest.raises(ValueError, match=r"expected at most 1,000,000 shards"):
        expand("{0..99999999}")


def test_samples_are_what_was_written(tmp_path, monkeypatch):
    paths = shards(tmp_path / "data", [3, 4])
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    data = open_shards(f"shards:{tmp_path}/data/{{000..002}}.tar", 16, tmp_path / "index")
    assert len(data) == 7 and data.sizes.tolist() == [3, 4, 0] and data.report.skipped == {"shard does not open": 1}
    assert f"{tmp_path}/data/002.tar" in str(data.report)
    for n in range(7):
        example = data[n]
        assert example.captions == (caption(n),) and data.key_of(n) == f"{'000' if n < 3 else '001'}.tar/{n:06d}"
        np.testing.assert_array_equal(example.image, read_image(picture(n), 16)[0])
    assert ShardData(paths, 16, tmp_path / "index2", field="caption")[2].captions == ("from json " + caption(2),)
    assert sorted(data.texts(100)) == sorted(caption(n) for n in range(7))
    again = open_shards(f"shards:{tmp_path}/data/{{000..002}}.tar", 16, tmp_path / "index")
    assert again.digest() == data.digest()
    os.truncate(paths[0], 100)
    with pytest.raises(ValueError, match="has changed since it was looked through"):
        open_shards(f"shards:{tmp_path}/data/{{000..002}}.tar", 16, tmp_path / "index")
    with pytest.raises(ValueError, match="expected shards, found none"):
        open_shards(f"shards:{tmp_path}/none*.tar", 16, tmp_path / "index")
    with pytest.raises(ValueError, match="unknown option 'size'"):
        open_shards("shards:a.tar?size=3", 16, tmp_path / "index")


CAPTIONS = {
    "caption is empty": ("txt", b"  \n"), "caption is not valid UTF-8": ("txt", b"\xff\xfe"),
    "caption's JSON is damaged": ("json", b"{"), "caption's JSON is no object": ("json", b"[1]"),
    "caption's JSON has no such field": ("json", b'{"x": 1}'), "caption is not text": ("json", b'{"caption": 3}'),
    "image corrupt": ("png", picture(0)[:40]), "not an image": ("png", b"GIF? no"), "image too large": ("png", bomb()),
}  # fmt: skip


def test_what_decoding_finds_says_its_reason(tmp_path):
    members = []
    for n, (kind, data) in enumerate(CAPTIONS.values()):
        good = {"png": picture(n), "txt": b"fine"} if kind != "json" else {"png": picture(n)}
        members += [member(f"{n}.{name}", content) for name, content in (good | {kind: data}).items()]
    deep = json.dumps({"caption": ["one", "two  words"]}).encode()
    members += [member("z.png", picture(8)), member("z.json", deep)]
    data = ShardData([str(write(tmp_path / "a.tar", members))], 16, tmp_path / "index")
    reasons = []
    for n in range(len(CAPTIONS)):
        with pytest.raises(Unusable) as caught:
            data[n]
        reasons.append(caught.value.reason)
    assert reasons == list(CAPTIONS)
    assert data[len(CAPTIONS)].captions == ("one", "two words")
    with pytest.raises(IndexError):
        data[len(data)]
