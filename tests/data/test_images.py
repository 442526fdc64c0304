"""Any image file becomes RGB or says why it cannot."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sparc_ref.data import images, load_image
from sparc_ref.data.images import read_image, resize
from sparc_ref.data.load_report import LoadReport, Unusable, shortened


@pytest.mark.parametrize(("mode", "format", "change"), [
    ("RGB", "PNG", None), ("RGB", "JPEG", None), ("RGB", "WEBP", None), ("RGB", "BMP", None), ("RGB", "TIFF", None),
    ("L", "PNG", "grey made RGB"), ("L", "JPEG", "grey made RGB"), ("1", "PNG", "black and white made RGB"),
    ("P", "PNG", "palette made RGB"), ("P", "GIF", "palette made RGB"), ("CMYK", "JPEG", "CMYK made RGB"),
    ("CMYK", "TIFF", "CMYK made RGB"), ("RGBA", "PNG", "alpha channel composited on white"),
    ("LA", "PNG", "alpha channel composited on white"), ("YCbCr", "JPEG", None),
    ("I;16", "PNG", "16 bits per channel reduced to 8"), ("I;16", "TIFF", "more than 8 bits per channel reduced to 8")])
def test_every_mode_becomes_rgb(photo, mode, format, change):
    """The picture stays the same picture: its left-to-right gradient survives every conversion."""
    pixels, changes = read_image(photo(mode, format=format), 24)
    assert pixels.shape == (24, 24, 3) and pixels.dtype == np.uint8
    assert changes == ([change] if change else [])
    luma = pixels.astype(float).mean((0, 2))
    assert luma[-4:].mean() > luma[:4].mean() + 30
    if mode in ("L", "I;16", "1", "LA"):
        assert (pixels == pixels[..., :1]).all()


def test_sixteen_bits_keep_their_range():
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    pixels, _ = read_image(stream.getvalue(), 8)
    assert np.array_equal(pixels[..., 0], (values / 257.0 + 0.5).astype(np.uint8))


def test_floats_need_a_known_range():
    def tiff(values):
        stream = io.BytesIO()
        Image.fromarray(np.asarray(values, np.float32)).save(stream, "TIFF")
        return stream.getvalue()
    assert np.array_equal(read_image(tiff([[0, 0.5], [0.25, 1]]), 2)[0][..., 0], [[0, 128], [64, 255]])
    assert np.array_equal(read_image(tiff([[0, 100], [7, 255]]), 2)[0][..., 0], [[0, 100], [7, 255]])
    for bad in ([[0, np.nan]], [[-1, 1]], [[0, 256]], [[0, np.inf]]):
        with pytest.raises(Unusable, match="unknown range of values"):
            read_image(tiff(bad), 2)


def test_transparency_lies_on_white():
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, 4:] = 255, 0, 0, 255
    pixels[:, 2:4] = 0, 0, 0, 128
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    out, _ = read_image(stream.getvalue(), 8)
    assert out[0].tolist() == [[255] * 3] * 2 + [[127] * 3] * 2 + [[255, 0, 0]] * 4
    stream = io.BytesIO()
    Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P").save(stream, "PNG", transparency=0)
    out, changes = read_image(stream.getvalue(), 2)
    assert out[0, 0].tolist() == [255] * 3 and changes == ["alpha channel composited on white"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_image_upright(orientation):
    """A red corner at the top left, stored in each of the eight orientations."""
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:6, :6, 0] = 255
    upright[:6, 10:, 2] = 255
    stored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
              5: upright.transpose(1, 0, 2), 6: np.rot90(upright, 1),
              7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1)}
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(stored[orientation])).save(stream, "PNG", exif=exif)
    pixels, changes = read_image(stream.getvalue(), 16)
    assert np.array_equal(pixels, upright)
    assert changes == (["turned upright as its EXIF says"] if orientation > 1 else [])
    pixels, changes = read_image(stream.getvalue(), 16, upright=False)
    assert np.array_equal(pixels, stored[orientation]) and changes == [], "as it is stored, where that is asked for"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_lose_the_image(photo, monkeypatch):
    monkeypatch.setattr(Image.Exif, "get", lambda *_: 1 / 0)
    assert read_image(photo(), 8)[1] == ["unreadable EXIF ignored"]
    monkeypatch.undo()
    for garbage in (b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b""):
        pixels, _ = read_image(photo(format="JPEG", exif=garbage), 8)
        assert pixels.shape == (8, 8, 3)


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    for format in ("GIF", "WEBP", "PNG"):
        stream = io.BytesIO()
        options = {"lossless": True} if format == "WEBP" else {}
        frames[0].save(stream, format, save_all=True, append_images=frames[1:], **options)
        pixels, changes = read_image(stream.getvalue(), 4)
        assert (pixels == [255, 0, 0]).all() and "first frame of an animation taken" in changes


def test_what_cannot_be_used_says_why(tmp_path, photo, bomb):
    def reason(source, **options):
        with pytest.raises(Unusable) as caught:
            read_image(source, 8, **options)
        return caught.value.reason
    png, jpeg = photo(), photo(format="JPEG")
    assert reason(bomb()) == reason(bomb(8100, 8000)) == "image too large"
    assert reason(png, max_pixels=40 * 30 - 1) == "image too large"
    read_image(png, 8, max_pixels=40 * 30)
    assert reason(jpeg[:len(jpeg) // 2]) == "image truncated"
    assert reason(png[:len(png) // 2]) in ("image truncated", "image corrupt")
    assert reason(b"") == reason(b"GIF") == reason(b"hello world" * 99) == "not an image"
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n") == "not an image"
    damaged = bytearray(png)
    damaged[60] ^= 255
    assert reason(bytes(damaged)) in ("image corrupt", "image truncated")
    assert reason(tmp_path / "absent.png") == "image missing"
    assert reason(tmp_path) == "not a regular file"
    os.mkfifo(tmp_path / "pipe.png")
    assert reason(tmp_path / "pipe.png") == "not a regular file"
    assert reason(tmp_path / ("x" * 5000)) in ("image missing", "image unreadable")
    with pytest.raises(ValueError, match=r"absent\.png: image missing"):
        load_image(tmp_path / "absent.png", 8)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=120, deadline=None)
@given(st.data())
def test_damaged_files_never_crash(data):
    format = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"]))
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((20, 20)).convert("RGB").save(stream, format)
    content = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    content = content[:data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    try:
        pixels, changes = read_image(bytes(content), 8)
    except Unusable as error:
        assert error.reason
    else:
        assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8 and isinstance(changes, list)


def test_squash_takes_everything_and_crop_the_middle():
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, :20, 0], wide[:, 20:40, 1], wide[:, 40:, 2] = 255, 255, 255
    squashed, cropped = resize(wide, 30), resize(wide, 20, "crop")
    assert squashed.shape == (30, 30, 3) and [squashed[15, x].argmax() for x in (4, 15, 26)] == [0, 1, 2]
    assert (cropped == [0, 255, 0]).all()
    tall = wide.transpose(1, 0, 2)
    assert (resize(tall, 20, "crop") == [0, 255, 0]).all() and np.array_equal(resize(tall, 30).transpose(1, 0, 2), squashed)
    assert np.array_equal(resize(wide[:, :20], 20), wide[:, :20])
    for picture, size, shape in ((wide, 30, (10, 30)), (tall, 30, (30, 10)), (wide, 60, (20, 60)), (wide, 99, (20, 60))):
        kept = resize(picture, size, "within")
        assert kept.shape == (*shape, 3), "in its own shape, never made larger"
        ends = (kept[0, 0], kept[shape[0] // 2, shape[1] // 2], kept[-1, -1])
        assert [int(colour.argmax()) for colour in ends] == [0, 1, 2]
    for bad, name in (((wide, 8, "fit"), "how"), ((wide, 0), "size")):
        with pytest.raises(ValueError, match=f"{name}: expected"):
            resize(*bad)


def test_downsampling_averages():
    """A fine checkerboard becomes grey, not a moire of black and white."""
    board = (np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, -1)
    small = resize(board, 16).astype(int)
    assert abs(small - 127.5).max() < 4


def test_the_report_is_one_readable_summary():
    report = LoadReport("here.jsonl")
    report.kept["images"] = 2
    report.convert("grey made RGB", "a.png")
    for n in range(5):
        report.skip("image missing", f"{n}\n\x1b[31m\ud800.png", "because")
    assert str(report).split("\n") == [
        "here.jsonl: kept 2 images", "  converted 1, grey made RGB: a.png",
        "  skipped 5, image missing: " + ", ".join(f"{n}\\n\\x1b[31m\\ud800.png: because" for n in range(3)) + ", ..."]
    assert report.as_dict()["skipped"] == {"image missing": 5}
    assert str(LoadReport("x")) == "x: kept nothing"
    assert len(shortened("y" * 999)) == 163
    with pytest.raises(ValueError, match=r"f: image missing: a \(strict\)"):
        LoadReport("f", strict=True).skip("image missing", "a")


# -------------------------------------------------------------------------------------------- what files are, and their cost


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(("start", "reason", "note"), [
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, not read", "save it as JPEG or PNG"),
    (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC, not read", "save it as JPEG or PNG"),
    (b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 ", "JPEG 2000, not read", "save it as JPEG or PNG"),
    (b"\xff\x4f\xff\x51\0\x2f", "JPEG 2000, not read", "save it as JPEG or PNG"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL, not read", "save it as JPEG or PNG"),
    (b"8BPS\0\1", "Photoshop, not read", "save it as JPEG or PNG"), (b"\n<svg xmlns=", "SVG, not read", "save it as JPEG"),
    (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", "not an image", "a video"),
    (b"<!DOCTYPE html><html>", "not an image", "an HTML page"), (b"%PDF-1.7", "not an image", "PDF"),
    (b"\x89PNG\r\n\x1a\nnothing", "image corrupt", "PNG, its header"), (b"MM\0*\xff\xff", "image corrupt", "TIFF, its header"),
    (b"version https://git-lfs.github.com/spec/v1\noid", "not an image", "git lfs pull"), (b"", "not an image", "empty file")])
def test_files_of_other_kinds_are_named(start, reason, note):
    with pytest.raises(Unusable) as caught:
        read_image(start + b"\0" * 40 if start else b"", 8)
    assert caught.value.reason == reason and note in caught.value.note


def test_jpeg_2000_that_pillow_writes_is_named(photo):
    if "JPEG2000" not in Image.SAVE and not Image.init() and "JPEG2000" not in Image.SAVE:
        pytest.skip("this Pillow writes no JPEG 2000")
    with pytest.raises(Unusable, match="JPEG 2000, not read"):
        read_image(photo(format="JPEG2000"), 8)


def test_avif_where_pillow_has_it(photo, monkeypatch):
    if "AVIF" not in images.formats():
        pytest.skip("this Pillow has no AVIF")
    data = photo(format="AVIF")
    assert read_image(data, 8)[0].shape == (8, 8, 3)
    monkeypatch.setattr(images, "formats", lambda: images.FORMATS)
    with pytest.raises(Unusable, match="AVIF, not read"):
        read_image(data, 8)


def test_checksums_of_pixels_are_verified(photo):
    """Without them Pillow decodes a picture whose bytes were changed along with nothing else."""
    png = bytearray(photo(size=(4, 4)))
    at = png.index(b"IDAT")
    length = int.from_bytes(png[at - 4:at])
    png[at + 4 + length] ^= 1                                     # the checksum itself: the pixels decode as before
    assert Image.open(io.BytesIO(png)).convert("RGB").size == (4, 4)
    with pytest.raises(Unusable, match=r"image corrupt \(checksum"):
        read_image(bytes(png), 4)


@pytest.mark.parametrize("orientation", range(1, 10))
@pytest.mark.parametrize("format", ["TIFF", "JPEG", "WEBP"])
def test_turned_pictures_are_counted_in_every_format(photo, orientation, format):
    """Pillow turns a TIFF while it decodes, and then no longer says so."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels, changes = read_image(photo(format=format, exif=exif), 8)
    assert changes == (["turned upright as its EXIF says"] if 1 < orientation < 9 else [])
    upright = read_image(photo(format=format), 8)[0]
    assert (np.abs(pixels.astype(int) - upright).mean() < 3) == (orientation in (1, 9))


def test_the_first_page_of_a_tiff():
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(stream, "TIFF", save_all=True, append_images=[Image.new("RGB", (4, 4), "blue")])
    pixels, changes = read_image(stream.getvalue(), 4)
    assert changes == ["first page taken"] and (pixels == [255, 0, 0]).all()


@pytest.mark.parametrize(("mode", "format", "options"), [
    ("RGBA", "PNG", {}), ("LA", "PNG", {}), ("P", "PNG", {"transparency": 0}), ("I;16", "PNG", {}),
    ("RGB", "JPEG", {"progressive": True}), ("CMYK", "JPEG", {}),
    ("F", "TIFF", {"compression": "tiff_adobe_deflate"}), ("RGB", "WEBP", {"lossless": True})])
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process's memory is read from /proc")
def test_memory_is_what_the_header_foretells(tmp_path, mode, format, options):
    """Decoded in a process of its own, a picture takes no more than memory() said, and not far less."""
    Image.new(mode, (3000, 2000)).save(tmp_path / "x", format, **options)
    code = """
import io, re, sys
from pathlib import Path
from PIL import Image
from sparc_ref.data import images
data = Path(sys.argv[1]).read_bytes()
for format in ("PNG", "TIFF", "WEBP", "JPEG"):
    small = io.BytesIO()
    Image.new("RGB", (300, 300)).save(small, format)
    images.read_image(small.getvalue(), 64)
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
before = peak()
with Image.open(io.BytesIO(data)) as image:
    said = images.memory(image) + len(data)
images.read_image(data, 64)
print(said, peak() - before)
"""
    said, took = map(int, subprocess.run([sys.executable, "-c", code, tmp_path / "x"], check=True, capture_output=True,
                                         text=True).stdout.split())
    assert took < said + 8 * 2**20 and took > said / 3


@pytest.mark.parametrize(("mode", "format", "fits"), [("RGB", "PNG", True), ("RGBA", "PNG", False), ("RGB", "WEBP", False)])
def test_too_much_memory_is_refused_before_a_pixel_is_decoded(monkeypatch, mode, format, fits):
    stream = io.BytesIO()
    Image.new(mode, (256, 256)).save(stream, format)
    monkeypatch.setattr(images, "MAX_MEMORY", 256 * 256 * 6)
    if fits:
        read_image(stream.getvalue(), 8)
        return
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(Unusable, match=rf"image too large \(256 x 256 pixels, {format}, mode {mode}"):
        read_image(stream.getvalue(), 8)


def test_strips_change_nothing(monkeypatch, photo):
    """A picture is converted some rows at a time; where the rows are cut does not show."""
    for mode, format in (("RGBA", "PNG"), ("P", "PNG"), ("CMYK", "JPEG"), ("I;16", "PNG")):
        data = photo(mode, format=format)
        whole = read_image(data, 16)[0]
        monkeypatch.setattr(images, "STRIP", 100)
        assert np.array_equal(read_image(data, 16)[0], whole)
        monkeypatch.undo()


@pytest.mark.parametrize(("width", "height"), [(30_000_000, 1), (1, 12_000_000)])
def test_a_line_of_pixels_does_not_take_a_gigabyte_to_resize(width, height):
    """One bit a pixel is 4 MB to decode; Pillow keeps 32 bytes for each column and row that it resizes."""
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "TIFF", compression="group4")
    with pytest.raises(Unusable, match=r"image too large.*MiB to decode"):
        read_image(buffer.getvalue(), 224)


def test_the_square_has_a_largest_side(photo):
    with pytest.raises(ValueError, match="size: expected at least 1 and at most 4096, got 640000"):
        resize(np.zeros((1, 1, 3), np.uint8), 640_000)


def test_pixels_written_in_digits_are_bounded(tmp_path, monkeypatch):
    """62 megapixels of text took 24 s to decode."""
    file = tmp_path / "1.pgm"
    file.write_bytes(b"P2 2500 2500 1\n" + b"1 " * (2500 * 2500))
    with pytest.raises(ValueError, match=r"image too large \(2500 x 2500 pixels written in digits \(P2\), at most 4000000"):
        load_image(file, 8)
    file.write_bytes(b"P2 20 20 1\n" + b"1 " * 400)
    assert load_image(file, 8).min() == 255
    monkeypatch.setattr(images, "MAX_TEXT", 100)
    with pytest.raises(ValueError, match="20 x 20 pixels written in digits"):
        load_image(file, 8)
    file.write_bytes(b"P5 20 20 255\n" + b"1" * 400)
    assert load_image(file, 8).min() == ord("1")


def test_a_jpeg_of_endless_scans(tmp_path):
    """Each scan is a pass over all pixels, and takes some bytes of the file."""
    Image.new("RGB", (3000, 3000)).save(tmp_path / "1.jpg", progressive=True)
    data = (tmp_path / "1.jpg").read_bytes()
    assert load_image(tmp_path / "1.jpg", 8).shape == (8, 8, 3)
    last = data.rindex(b"\xff\xda")
    (tmp_path / "1.jpg").write_bytes(data[:last] + data[last:-2] * 300 + data[-2:])
    with pytest.raises(ValueError, match=r"image too large \(3000 x 3000 pixels in 3\d\d scans"):
        load_image(tmp_path / "1.jpg", 8)
