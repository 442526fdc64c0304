"""Masks: COCO's run lengths and polygons against pycocotools; label PNGs; what is damaged is named."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparc_ref.data.load_report import Unusable
from sparc_ref.data.masks import decode, fill, from_runs, letters, picture_size, read_labels

cm = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31))
def test_run_lengths_are_pycocotools(H, W, seed):
    mask = np.random.default_rng(seed).random((H, W)) < 0.5
    rle = cm.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = rle["counts"].decode()
    assert np.array_equal(decode({"size": [H, W], "counts": text}, H, W), mask)
    assert np.array_equal(decode({"size": [H, W], "counts": letters(text)}, H, W), mask)


def test_long_runs_need_several_letters():
    mask = np.zeros((900, 700), bool)
    mask[30:800, 100:650] = True
    text = cm.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    assert np.array_equal(from_runs(text, 900, 700), mask)


def test_polygons_are_exact_on_pixel_edges_and_close_to_pycocotools():
    box = np.zeros((6, 8), bool)
    box[1:4, 2:7] = True
    assert np.array_equal(fill([2, 1, 7, 1, 7, 4, 2, 4], 6, 8), box)
    assert np.array_equal(fill([2, 1, 2, 4, 7, 4, 7, 1], 6, 8), box)              # the other way round
    assert np.array_equal(fill([-5, -5, 50, -5, 50, 50, -5, 50], 6, 8), np.ones((6, 8), bool))
    rng = np.random.default_rng(3)
    for _ in range(20):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        xy = 50 + rng.uniform(15, 45, (9, 1)) * np.stack([np.cos(angles), np.sin(angles)], 1)
        polygon = xy.ravel().tolist()
        theirs = cm.decode(cm.merge(cm.frPyObjects([polygon], 100, 100))).astype(bool)
        ours = decode([polygon], 100, 100)
        assert np.count_nonzero(ours & theirs) / np.count_nonzero(ours | theirs) > 0.96      # they round corners to fifths


def test_two_polygons_are_one_object():
    a, b = [0, 0, 2, 0, 2, 2, 0, 2], [1, 1, 3, 1, 3, 3, 1, 3]
    assert np.array_equal(decode([a, b], 4, 4), fill(a, 4, 4) | fill(b, 4, 4))


@pytest.mark.parametrize("segmentation, message", [
    ({"size": [3, 4], "counts": [12]}, r"expected size \[4, 3\]"),
    ({"size": [4, 3], "counts": [5, 5]}, "sum to 4 x 3 = 12, got 10 in 2 runs"),
    ({"size": [4, 3], "counts": [-2, 14]}, "whole numbers"),
    ({"size": [4, 3], "counts": [6.0, 6]}, "whole numbers"),
    ({"size": [4, 3], "counts": [True, 11]}, "whole numbers"),
    ({"size": [4, 3], "counts": "P"}, "ends within a number"),
    ({"size": [4, 3], "counts": "é"}, "COCO's letters"),
    ({"size": [4, 3], "counts": "o" * 1000}, "COCO's letters"),
    ({"size": [4, 3]}, "got 'None'"),
    ([], "expected polygons or run lengths"), ("0 1", "expected polygons"), (None, "expected polygons"),
    ([[1, 2, 3, 4]], "3 corners or more"), ([[1, 2, 3, 4, 5, 6, 7]], "3 corners"), ([[0, 0, 1e300, 0, 1, 1]], "3 corners"),
    ([[0, 0, float("nan"), 0, 1, 1]], "3 corners"), ([["0", 0, 1, 0, 1, 1]], "3 corners"), ([7], "3 corners"),
])
def test_what_is_no_mask_is_named(segmentation, message):
    with pytest.raises(ValueError, match=message):
        decode(segmentation, 4, 3)


def test_labels_of_every_kind_of_png(tmp_path):
    from PIL import Image

    x = np.array([[0, 1, 20], [255, 2, 0]], np.uint8)
    Image.fromarray(x).save(tmp_path / "grey.png")
    p = Image.new("P", (3, 2))
    p.putpalette([i % 256 for i in range(768)])
    p.putdata(x.ravel().tolist())
    p.save(tmp_path / "palette.png")
    Image.fromarray(x.astype(np.uint16) * 100).save(tmp_path / "deep.png")
    Image.fromarray(x > 1).save(tmp_path / "one.png")
    assert np.array_equal(read_labels(tmp_path / "grey.png"), x)
    assert np.array_equal(read_labels(tmp_path / "palette.png"), x)
    assert np.array_equal(read_labels(tmp_path / "deep.png"), x.astype(np.int64) * 100)
    assert np.array_equal(read_labels(tmp_path / "one.png"), x > 1)


def test_what_is_no_label_png_is_named(tmp_path):
    from PIL import Image

    good = tmp_path / "good.png"
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(good)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "colour.png")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "photo.jpg")
    (tmp_path / "jpeg.png").write_bytes((tmp_path / "photo.jpg").read_bytes())
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:-20])
    bad = bytearray(good.read_bytes())
    bad[-14] ^= 1                                                 # of the checksum alone
    (tmp_path / "flipped.png").write_bytes(bad)
    Image.new("L", (6000, 5000)).save(tmp_path / "large.png")
    for name, reason in (("colour", "mask is not made of labels"), ("jpeg", "mask is no PNG"), ("cut", "truncated|corrupt"),
                         ("flipped", "corrupt"), ("large", "mask too large"), ("absent", "missing")):
        with pytest.raises(Unusable, match=reason):
            read_labels(tmp_path / f"{name}.png")
    with pytest.raises(Unusable):
        picture_size(tmp_path / "absent.png")
    for size in ((6000, 10), (10, 6000)):                         # long, and of few pixels
        Image.new("L", size).save(tmp_path / "long.png")
        assert read_labels(tmp_path / "long.png").shape == size[::-1]


def test_a_pictures_size_is_that_of_the_upright_picture(tmp_path):
    from PIL import Image

    turned = Image.new("RGB", (30, 20))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "a.jpg", exif=exif)
    assert picture_size(tmp_path / "a.jpg") == (30, 20)
    turned.save(tmp_path / "b.jpg")
    assert picture_size(tmp_path / "b.jpg") == (20, 30)


def test_real_objects_are_pycocotools(sample_data):
    content = json.loads((sample_data / "coco" / "instances.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    both = either = runs = 0
    for note in content["annotations"][::6]:
        if "segmentation" not in note:
            continue
        s, (H, W) = note["segmentation"], sizes[note["image_id"]]
        rle = cm.frPyObjects(s, H, W)
        theirs = cm.decode(cm.merge(rle) if isinstance(s, list) else rle).astype(bool)
        ours = decode(s, H, W)
        if isinstance(s, dict):
            runs += 1
            assert np.array_equal(ours, theirs)
        both += np.count_nonzero(ours & theirs)
        either += np.count_nonzero(ours | theirs)
    assert runs > 10 and both / either > 0.998
