"""Picture scenes: exact masks from alpha, captions that hold, and zips that mean harm."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from test_drawn import digest

from sparc_ref.data import PictureScenes
from sparc_ref.data import pictures as module
from sparc_ref.data.pictures import named, read_picture, scaled

COLOURS = {"red-dot": (220, 0, 0), "green_dot": (0, 200, 0), "blue  dot": (0, 0, 230), "white-dot": (250, 250, 250),
           "black-dot": (2, 2, 2)}


@pytest.fixture
def source(tmp_path, sticker):
    """A zip of five discs and their names; one is held out."""
    with zipfile.ZipFile(tmp_path / "dots.zip", "w") as archive:
        for key, colour in COLOURS.items():
            archive.writestr(f"{key}.png", sticker(colour))
        archive.writestr("held.png", sticker((250, 250, 0)))
    lines = [{"id": key, "name": " ".join(key.replace("-", " ").replace("_", " ").split())} for key in COLOURS]
    lines.append({"id": "held", "name": "yellow dot", "split": "heldout"})
    (tmp_path / "names.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "dots.zip", tmp_path / "names.jsonl"


def opened(tmp_path, files, **options):
    """A data set of the zip with these members (name, bytes), next to two good pictures."""
    path = tmp_path / "test.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return PictureScenes(path, objects=(1, 1), **options)


def test_masks_spans_and_captions(source):
    ds = PictureScenes(*source, count=40, clutter=False, captions=2)
    assert ds.classes == ("black dot", "blue dot", "green dot", "red dot", "white dot")
    json.dumps(ds.describe())
    colour = {named(k)[0]: c for k, c in COLOURS.items()}
    for i in range(40):
        example = ds[i]
        assert example.image.shape == (64, 64, 3) and example.image.dtype == np.uint8
        assert np.array([r.mask for r in example.regions]).sum(0).max() == 1
        assert len({r.label for r in example.regions}) == len(example.regions) and len(example.captions) == 2
        assert all([k for k, _, _ in region.spans] == [0, 1] for region in example.regions), "each is named in each caption"
        centre = {}
        for region in example.regions:
            for k, start, end in region.spans:
                assert example.captions[k][start:end] == region.label
            difference = np.abs(example.image[region.mask].astype(int) - colour[region.label]).max(-1)
            assert np.median(difference) == 0 and (difference < 8).mean() > 0.6
            assert 120 < region.mask.sum() < 900
            y, x = np.nonzero(region.mask)
            centre[region.label] = x.mean(), y.mean()
        for text in example.captions:
            for part in text.split(" and "):
                for link, holds in (("left of", lambda a, b: a[0] < b[0]), ("right of", lambda a, b: a[0] > b[0]),
                                    ("above", lambda a, b: a[1] < b[1]), ("below", lambda a, b: a[1] > b[1])):
                    if f" {link} " in part:
                        a, b = part.split(f" {link} ")
                        assert holds(centre[a], centre[b]), text


def test_a_mask_is_alpha_at_least_one_half(tmp_path):
    """Three upright bars, the middle one with alpha 120: the outer two are the object, all three are painted."""
    pixels = np.zeros((36, 36, 4), np.uint8)
    pixels[:, :] = 255, 0, 0, 255
    pixels[:, 12:24, 3] = 120
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    ds = opened(tmp_path, [("a.png", stream.getvalue())], clutter=False)
    for i in range(10):
        mask, image = ds[i].regions[0].mask, ds[i].image
        y, x = np.nonzero(mask)
        box = np.zeros_like(mask)
        box[y.min():y.max() + 1, x.min():x.max() + 1] = True
        assert abs(mask[box].mean() - 2 / 3) < 0.08 and not mask[:, (x.min() + x.max()) // 2].any()
        assert (image[mask][:, 0] > 180).all() and (image[box & ~mask][:, 0] < 255).all()
        ground = np.median(image[~box], 0)
        soft = image[(y.min() + y.max()) // 2, (x.min() + x.max()) // 2]
        np.testing.assert_allclose(soft, ground + 120 / 255 * ([255, 0, 0] - ground), atol=2)


def test_splits_share_or_hide_pictures(source):
    train, validation, test = (PictureScenes(*source, split=s) for s in ("train", "validation", "test"))
    held = PictureScenes(*source, split="heldout", objects=(1, 1))
    assert train.classes == validation.classes == test.classes and held.classes == ("yellow dot",)
    assert len({digest(ds[5]) for ds in (train, validation, test, held)}) == 4
    assert "yellow" not in " ".join(train[i].captions[0] for i in range(50))
    assert train.report.kept["pictures of the other splits"] == 1
    with pytest.raises(ValueError, match="at least 4 pictures for the split heldout, got 1"):
        PictureScenes(*source, split="heldout")


def test_a_folder_gives_the_same_scenes_as_a_zip_in_any_order(source, tmp_path, sticker):
    folder, shuffled = tmp_path / "dots", tmp_path / "other" / "dots.zip"
    folder.mkdir()
    shuffled.parent.mkdir()
    with zipfile.ZipFile(shuffled, "w") as archive:
        for key, colour in reversed(COLOURS.items()):
            (folder / f"{key}.png").write_bytes(sticker(colour))
            archive.writestr(f"deep/er/{key}.png", sticker(colour))
    datasets = [PictureScenes(s, source[1], count=c) for s, c in ((source[0], 9), (folder, 99), (shuffled, 999))]
    for i in (0, 7):
        assert len({digest(ds[i]) for ds in datasets}) == 1
    with pytest.raises(IndexError):
        datasets[0][9]


def test_file_names_serve_as_names_and_one_in_ten_is_held_out(tmp_path, sticker):
    for n in range(40):
        (tmp_path / f"thing_no-{n}.png").write_bytes(sticker((5 * n, 0, 0), 16))
    train, held = PictureScenes(tmp_path), PictureScenes(tmp_path, split="heldout", objects=(1, 1))
    assert len(train.classes) + len(held.classes) == 40 and not set(train.classes) & set(held.classes)
    assert 1 <= len(held.classes) <= 9 and "thing no 0" in train.classes + held.classes


def test_no_transparency_is_skipped_unless_kept(tmp_path, sticker, photo):
    files = [("opaque.png", photo("RGB")), ("grey.png", photo("L")), ("pale.png", sticker(alpha=90)), ("good.png", sticker())]
    ds = opened(tmp_path, files)
    assert ds.classes == ("good",)
    assert ds.report.skipped == {"no transparency": 2, "nothing visible": 1}
    assert opened(tmp_path, files, keep_opaque=True).classes == ("good", "grey", "opaque")


def test_every_option_is_told_and_moves_what_is_shown(source):
    """None at its default; the seed and the split too draw other scenes of the same pictures."""
    options = {"split": "test", "size": 40, "count": 7, "seed": 3, "objects": (2, 3), "clutter": False, "style": "short",
               "captions": 3}
    ds = PictureScenes(*source, **options)
    told = ds.describe()
    report = told.pop("report")
    assert told == options | {"name": "dots-test", "kind": "picture scenes", "source": str(source[0]), "objects": [2, 3],
                              "classes": 5}
    assert report == ds.report.as_dict() and len(ds) == 7 and all(2 <= len(ds[i].regions) <= 3 for i in range(7))
    assert {len(ds[i].regions) for i in range(7)} == {2, 3} and ds[6].key == "dots-test-3-6"
    usual = PictureScenes(*source)
    for name in options.keys() - {"count"}:
        other = PictureScenes(*source, **{name: options[name]})
        assert any(digest(other[i]) != digest(usual[i]) for i in range(4)), name
    assert {len(usual[i].regions) for i in range(30)} == {1, 2, 3, 4}, "from one to four, where nothing is said"


def test_the_hash_is_that_of_every_pixel_and_name(tmp_path, sticker):
    def hashed(names, colours, **options):
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            for name, colour in zip(names, colours):
                archive.writestr(f"{name}.png", sticker(colour))
        return PictureScenes(tmp_path / "x.zip", objects=(1, 1), **options).digest()

    first = hashed("ab", [(9, 9, 9), (80, 0, 0)])
    others = [hashed("ac", [(9, 9, 9), (80, 0, 0)]), hashed("ab", [(9, 9, 9), (81, 0, 0)]), hashed("a", [(9, 9, 9)])]
    assert len({first, *others}) == 4 and hashed("ba", [(80, 0, 0), (9, 9, 9)], seed=5, split="test", count=3) == first


def test_long_pictures_are_pasted_whole_around_their_centres(tmp_path):
    """Three times as tall as wide, and the reverse: nothing is cut at the border, and they come near to each border."""
    for name, shape in (("tall", (36, 12)), ("wide", (12, 36))):
        pixels = np.zeros((40, 40, 4), np.uint8)
        pixels[2:2 + shape[0], 2:2 + shape[1]] = (9, 200, 9, 255)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        ds = opened(tmp_path, [("good.png", stream.getvalue())], clutter=False)
        boxes = np.array([[(x.min(), x.max() + 1) for x in np.nonzero(ds[i].regions[0].mask)] for i in range(120)])
        height, width = (boxes[:, :, 1] - boxes[:, :, 0]).T
        long, short = (height, width) if name == "tall" else (width, height)
        assert np.all(np.abs(long / short - 3) < 0.5) and set(long) == {64 * n // 1000 for n in module.SIZES}
        free = np.stack([boxes[:, :, 0], 64 - boxes[:, :, 1]], 2)      # (N,2,2): above and below, left and right
        assert free.min((0, 2)).tolist() <= ([1, 12] if name == "tall" else [12, 1])
        assert abs(free[..., 0].mean(0) - free[..., 1].mean(0)).max() < 8, "as far from one side as from the other"


def test_hostile_members_are_skipped_with_their_reason(tmp_path, sticker, photo, bomb):
    good = sticker()
    noise = np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes()
    ds = opened(tmp_path, [
        ("../../etc/evil.png", good), ("/absolute.png", good), ("..\\windows.png", good), ("C:/drive.png", good),
        ("notes.txt", b"text"), ("__MACOSX/", b""), ("noise.png", noise), ("jpeg.png", photo("RGB", format="JPEG")),
        ("cut.png", good[:150]), ("empty.png", b""), ("huge.png", bomb()), ("zeros.png", bytes(9 * 2**20)),
        ("good.png", good), ("again/good.png", good), ("wide.png", bomb(3000, 10))])
    assert ds.classes == ("good",)
    assert ds.report.skipped == {
        "unsafe name": 4, "not a PNG file": 4, "picture damaged": 1, "picture too large": 2, "file too large": 1,
        "second picture of one id": 1}
    assert str(ds.report).count("\n") == len(ds.report.skipped) + 1 and "zeros.png" in str(ds.report)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["test.zip"], "nothing is extracted"
    with pytest.raises(ValueError, match="strict"):
        opened(tmp_path, [("good.png", good), ("cut.png", good[:150])], strict=True)


def patched(path, field, value, signature=b"PK\x01\x02"):
    """Overwrite bytes of the last central directory entry."""
    data = bytearray(path.read_bytes())
    at = data.rindex(signature)
    data[at + field:at + field + len(value)] = value
    path.write_bytes(data)


@pytest.mark.parametrize(("field", "value", "reason"), [
    (8, b"\x01\x00", "encrypted"),                                # general purpose flags
    (10, b"\x63\x00", "damaged in the zip"),                      # an unknown compression method
    (16, b"\x00\x01\x02\x03", "damaged in the zip"),              # a wrong checksum
    (24, b"\x10\x00\x00\x00", "damaged in the zip"),              # a size far below the true one
    (24, b"\x00\x00\x00\x70", "file too large"),                  # a size of 1.8 GB
    (42, b"\x00\x00\x00\x70", "damaged in the zip"),              # data beyond the end of the file
])
def test_lying_zip_headers(tmp_path, sticker, field, value, reason):
    opened(tmp_path, [("good.png", sticker()), ("zz.png", sticker((1, 2, 3)))])
    patched(tmp_path / "test.zip", field, value)
    ds = PictureScenes(tmp_path / "test.zip", objects=(1, 1))
    assert ds.classes == ("good",) and ds.report.skipped == {reason: 1}


def test_what_is_no_source_is_a_clear_error(tmp_path, sticker, monkeypatch):
    (tmp_path / "not.zip").write_bytes(b"PK\x03\x04 nothing else")
    for path in (tmp_path / "not.zip", tmp_path / "absent"):
        with pytest.raises(ValueError, match="expected a folder or a zip file"):
            PictureScenes(path)
    with pytest.raises(ValueError, match="at least 1 pictures for the split train, got 0"):
        opened(tmp_path, [("readme.md", b"")])
    monkeypatch.setattr(module, "MAX_FILES", 3)
    with pytest.raises(ValueError, match="at most 3 files, got 4"):
        opened(tmp_path, [(f"{n}.png", b"") for n in range(4)])
    monkeypatch.setattr(module, "MAX_TOTAL", 2 * len(sticker()) + 10)
    ds = opened(tmp_path, [(f"{n}.png", sticker()) for n in "abc"])
    assert ds.report.skipped == {"past the limit for all pictures together": 1} and len(ds.classes) == 2
    for option in ({"split": "unseen"}, {"size": 5}, {"objects": (0, 1)}, {"style": "x"}, {"count": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}: expected"):
            PictureScenes(tmp_path, **option)


def test_a_link_out_of_the_folder_is_skipped(tmp_path, sticker):
    inside, outside = tmp_path / "in", tmp_path / "secret.png"
    inside.mkdir()
    outside.write_bytes(sticker())
    (inside / "good.png").write_bytes(sticker())
    (inside / "link.png").symlink_to(outside)
    ds = PictureScenes(inside, objects=(1, 1))
    assert ds.classes == ("good",) and ds.report.skipped == {"unsafe name": 1}


def test_malformed_names_are_counted(tmp_path, sticker):
    lines = [b'{"id": "a", "name": "apple"}', b"", b"{", b"[]", b'{"id": "b"}', b'{"id": 3, "name": "three"}', b"\xff\xfe",
             b'{"id": "c", "name": "\\ud800"}', b'{"id": "a", "name": "again"}', b'{"id": "d", "name": "x", "split": "huh"}',
             b'{"id": "e", "name": 7}', b'{"id": "gone", "name": "gone"}', b'{"id": "f", "name": "  "}', b"[" * 100_000]
    (tmp_path / "names.jsonl").write_bytes(b"\n".join(lines))
    files = [(f"{key}.png", sticker()) for key in "abf"]
    ds = opened(tmp_path, files, names=tmp_path / "names.jsonl")
    assert ds.classes == ("apple",)
    assert ds.report.skipped == {"line of names is not usable": 10, "picture without a name": 2, "name without a picture": 1}
    with pytest.raises(ValueError, match=r"names: .* cannot be read"):
        opened(tmp_path, files, names=tmp_path / "absent.jsonl")


def test_scaling_keeps_colours_at_the_rim_and_the_aspect():
    """Premultiplied: the black of invisible pixels never bleeds into a white picture."""
    data = np.zeros((40, 20, 4), np.uint8)
    data[5:35, 5:15] = 255
    small = scaled(data, 10)
    assert small.shape == (10, 5, 4)
    assert (small[..., :3] == small[..., 3:]).all()
    stream = io.BytesIO()
    Image.fromarray(data).save(stream, "PNG")
    assert read_picture(stream.getvalue(), 100, False).shape == (30, 10, 4)      # cut to what is visible
    assert read_picture(stream.getvalue(), 15, False).shape == (15, 5, 4)


def test_real_emoji(samples):
    folder = samples / "emoji"
    train = PictureScenes(folder / "noto.zip", folder / "emoji.jsonl", count=100)
    held = PictureScenes(folder / "noto.zip", folder / "emoji.jsonl", "heldout")
    assert len(train.classes) == 1477 and len(held.classes) == 167 and not set(train.classes) & set(held.classes)
    assert train.report.skipped == {"name without a picture": 261}
    for i in range(30):
        example = train[i]
        for region in example.regions:
            assert region.mask.sum() > 15 and example.captions[0][slice(*region.spans[0][1:])] == region.label
    other = PictureScenes(folder / "emojitwo.zip", folder / "emoji.jsonl", "heldout")
    opaque = other.report.skipped["no transparency"] + PictureScenes(
        folder / "emojitwo.zip", folder / "emoji.jsonl").report.skipped["no transparency"]
    assert opaque == 19


def test_the_style_and_the_number_of_objects_are_those_that_are_asked_for(source):
    picture, names = source
    for n in (1, 3):
        short = PictureScenes(picture, names, style="short", objects=(n, n))[0].captions[0]
        assert short.count(" and ") == n - 1 and not {"left", "right", "above", "below", "at", "on", "in"} & set(short.split())
