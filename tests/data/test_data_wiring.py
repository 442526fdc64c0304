"""Beyond the memory that is allowed, the same pictures and captions come as within it: resized, cropped, every caption."""

import json

import numpy as np
import pytest
from PIL import Image

from sparc_ref.data import Batches, CaptionData, Example, WordTokenizer, open_captions
from sparc_ref.data.images import load_image, read_image

WORDS = WordTokenizer([f"w{i}" for i in range(60)])


class Mixed:
    """Pictures of several sizes, one to four captions each, every word once."""

    name, classes = "mixed", ()

    def __init__(self):
        rng = np.random.default_rng(0)
        self.examples = [Example(rng.integers(0, 256, (4 + i % 3, 5, 3), np.uint8),
                                 tuple(f"w{4 * i + k}" for k in range(1 + i % 4))) for i in range(12)]

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return self.examples[i]


def draw(data, memory_mb, image_size, epochs):
    batches = Batches(data, WORDS, 4, seed=2, max_tokens=3, image_size=image_size, memory_mb=memory_mb)
    return [next(batches) for _ in range(epochs * batches.per_epoch)]


@pytest.mark.parametrize("room", [0, 6 * 6 * 3 * 5, 10**6], ids=["nothing", "five pictures", "all"])
def test_batches_do_not_depend_on_memory(room):
    data, seen = Mixed(), set()
    for batch, whole in zip(draw(data, room / 2**20, 6, 20), draw(data, 1024, 6, 20)):
        assert batch.images.shape == (4, 3, 6, 6) and np.array_equal(batch.images, whole.images)
        for i, k, tokens in zip(batch.index, batch.caption, batch.tokens):
            assert tokens[0] == WORDS.encode(data[int(i)].captions[int(k)]).ids[0]
            seen.add((int(i), int(k)))
        assert np.array_equal(batch.caption, whole.caption) and np.array_equal(batch.tokens, whole.tokens)
    assert seen == {(i, k) for i in range(12) for k in range(len(data[i].captions))}, "every caption is drawn"


@pytest.mark.parametrize("how", ["squash", "crop"])
def test_captioned_files_do_not_depend_on_memory(tmp_path, how):
    """Wide pictures, so that what is cropped and what is squeezed differ."""
    rng = np.random.default_rng(1)
    with open(tmp_path / "captions.jsonl", "w") as file:
        for n in range(3):
            Image.fromarray(rng.integers(0, 256, (10, 30, 3), np.uint8)).save(tmp_path / f"{n}.png")
            for k in range(3):
                file.write(json.dumps({"image": f"{n}.png", "caption": f"w{10 * n + k}"}) + "\n")
    kept, lazy = (open_captions(tmp_path, size=8, how=how, memory_mb=room, progress=False) for room in (1, 0))
    other = open_captions(tmp_path, size=8, how={"squash": "crop", "crop": "squash"}[how], progress=False)
    for n in range(3):
        assert kept[n].captions == lazy[n].captions == tuple(f"w{10 * n + k}" for k in range(3))
        assert np.array_equal(kept[n].image, lazy[n].image) and not np.array_equal(kept[n].image, other[n].image)


def test_a_picture_that_is_large_and_allowed_is_allowed_again(tmp_path, monkeypatch):
    """Where it is decoded anew; the usual limit of pixels is made small."""
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    (tmp_path / "captions.jsonl").write_text(json.dumps({"image": "a.png", "caption": "w0"}))
    monkeypatch.setattr(read_image, "__defaults__", ("squash", 100, True))
    monkeypatch.setattr(load_image, "__defaults__", ("squash", 100))
    monkeypatch.setattr(CaptionData.__init__, "__defaults__", ("", None, 100))
    lazy = open_captions(tmp_path, size=8, max_pixels=400, memory_mb=0, progress=False)
    assert lazy.images == [None] and lazy[0].image.shape == (8, 8, 3)


def test_the_hash_of_captioned_files_sees_every_name_caption_byte_and_their_order(tmp_path):
    rows = [("0.png", "a"), ("1.png", "b"), ("1.png", "c"), ("2.png", "d")]

    def hashed(rows, turn=0, **options):
        for n in range(3):
            Image.fromarray(np.full((4, 6, 3), 9 * ((n + turn) % 3), np.uint8)).save(tmp_path / f"{n}.png")
        (tmp_path / "captions.jsonl").write_text("".join(json.dumps({"image": n, "caption": c}) + "\n" for n, c in rows))
        return open_captions(tmp_path, size=4, progress=False, **options).digest()

    first = hashed(rows)
    assert hashed(rows, memory_mb=0, how="crop") == first, "of the files, however they are read"
    changed = [hashed(rows, 1), hashed([*rows[:3], ("2.png", "e")]), hashed([rows[0], rows[2], rows[1], rows[3]]),
               hashed(rows[:3]), hashed([rows[3], *rows[:3]]), hashed([*rows, ("2.png", "d")])]
    (tmp_path / "3.png").write_bytes((tmp_path / "2.png").read_bytes())
    changed.append(hashed([*rows[:3], ("3.png", "d")]))
    assert len({first, *changed}) == 8


def test_a_data_set_of_files_says_of_itself_what_it_is(tmp_path):
    """Every field by itself; keys are the files' names; the split of the file's own is that which is asked for."""
    rows = [("a/0.png", "x", "test"), ("a/0.png", "y", "test"), ("b/1.png", "z", "test"), ("b/2.png", "w", "train")]
    for folder in "ab":
        (tmp_path / folder).mkdir()
    for name, _, _ in rows:
        Image.new("RGB", (4, 6)).save(tmp_path / name)
    (tmp_path / "captions.csv").write_text("image,caption,split\n" + "".join(",".join(row) + "\n" for row in rows))
    for options in ({"split": "test"}, {"own_split": "test"}):
        data = open_captions(tmp_path, size=5, how="crop", progress=False, **options)
        told = data.describe()
        report = told.pop("report")
        assert told == {"name": f"{tmp_path.name}-test", "kind": "image-caption files", "count": 2, "captions": 3, "size": 5,
                        "resize": "crop", "split": "test"}
        assert report == data.report.as_dict() and report["kept"] == {"images": 2, "captions": 3, "captions of other splits": 1}
        assert [example.key for example in (data[0], data[1])] == ["0.png", "1.png"] and data.splits == {"test": 3, "train": 1}
