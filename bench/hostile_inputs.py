"""What bench/hostile_data.py plants: 100 damaged or odd pictures, caption files, archives, and beside each what is right.

Every family is said as (family, content, right ...) before anything is read.
"""

import csv
import io
import json
import os
import struct
import zipfile
import zlib

import numpy as np
from PIL import Image, features

DAMAGED = {"image truncated", "image corrupt"}
GOOD = 20                                                         # captions of every caption file that must be read
UNCLOSED = "quote that does not close its cell, row read as it stands"


def encoded(mode="RGB", size=(40, 30), format="PNG", **options):
    y, x = np.mgrid[:size[1], :size[0]]
    noise = np.random.default_rng(0).integers(0, 40, (size[1], size[0], 3))
    pixels = (np.stack([x * 215 // size[0], y * 215 // size[1], (x + y) % 216], -1) + noise).astype(np.uint8)
    image = Image.fromarray((x * 1600).astype(np.uint16)) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def plain(mode, size, format, **options):
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, format, **options)
    return stream.getvalue()


def floats(values):
    stream = io.BytesIO()
    Image.fromarray(np.asarray(values, np.float32)).save(stream, "TIFF")
    return stream.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth=8, colour=2, data=bytes(1000)):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def flipped(data, at, mask=255):
    return data[:at] + bytes([data[at] ^ mask]) + data[at + 1:]


# -------------------------------------------------------------------------------------------------------------- pictures


OTHER_KINDS = (
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, not read"), (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC, not read"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000, not read"), (b"\xff\x4f\xff\x51\0\x2f", "JPEG 2000, not read"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL, not read"), (b"\xff\x0a\xfa", "JPEG XL, not read"),
    (b"8BPS\0\1", "Photoshop, not read"), (b"\0\0\1\0\1\0", "Windows icon, not read"), (b"<svg xmlns='x'>", "SVG, not read"),
    (b"\0\0\0\x20ftypisom\0\0\2\0", "not an image"), (b"<!DOCTYPE html><html>404", "not an image"),
    (b"%PDF-1.7", "not an image"), (b"%!PS-Adobe-3.0 EPSF-3.0\nshowpage", "not an image"), (b"PK\3\4", "not an image"),
    (b"version https://git-lfs.github.com/spec/v1", "not an image"), (b"\x7fELF", "not an image"), (b"", "not an image"),
    (b"GIF89", "not an image"), (b"hello", "not an image"), (b"\xff\xd8\xff", DAMAGED),
)


def pictures():
    """(family, content, right): right is "used", a reason, or a set of reasons of which one is right."""
    jpeg, whole = encoded(format="JPEG", quality=90), encoded()
    scan, idat = jpeg.index(b"\xff\xda") + 20, whole.index(b"IDAT")
    length = int.from_bytes(whole[idat - 4:idat])
    turned = Image.Exif()
    turned[0x0112] = 6
    for cut in np.linspace(0.05, 0.95, 10):
        yield "cut short", jpeg[:scan + int(cut * (len(jpeg) - scan))], "image truncated"
        yield "cut short", whole[:idat + 4 + int(cut * length)], DAMAGED
    for format in ("WEBP", "BMP", "TIFF", "PPM", "GIF"):
        yield "cut short", encoded(format=format)[:-300], DAMAGED

    for at in np.linspace(4, length, 16, dtype=int):
        yield "a bit flipped, seen by its checksum", flipped(whole, idat + 3 + int(at), 1 << int(at) % 8), "image corrupt"
    for at in range(4):
        yield "a bit flipped, seen by its checksum", flipped(whole, idat + 4 + length + at), "image corrupt"

    for width, height, depth, colour in (
        (60_000, 60_000, 8, 2), (8100, 8000, 8, 2), (2**31 - 1, 2**31 - 1, 1, 0), (64_000_001, 1, 1, 0), (30_000, 30_000, 16,
        6),
        (20_000, 20_000, 8, 3),
    ):
        yield "a bomb", png(width, height, depth, colour), "image too large"
    bmp = encoded(format="BMP")
    yield "a bomb", bmp[:18] + struct.pack("<ii", 50_000, 50_000) + bmp[26:], "image too large"
    yield "a bomb", flipped(flipped(encoded(format="GIF"), 7), 9), "image too large"
    yield "a bomb", plain("RGB", (10_000, 3_500), "WEBP", lossless=True), "image too large"      # 16 bytes a pixel to decode
    yield "a bomb", plain("RGBA", (7_000, 7_000), "PNG", exif=turned), "image too large"         # 12: turned, and made RGB

    for start, right in OTHER_KINDS:
        yield "no picture that is read", start + b"\0" * 60 * bool(start), right
    for values in ([[0, np.nan]], [[-1, 1]], [[0, 256]], [[0, np.inf]]):
        yield "floats without a known range", floats(values), "unknown range of values"

    for mode, format, options in (
        ("I;16", "PNG", {}), ("I;16", "TIFF", {}), ("LA", "PNG", {}), ("P", "PNG", {}), ("P", "PNG", {"transparency": 0}),
        ("1", "PNG", {}), ("L", "GIF", {}), ("CMYK", "JPEG", {}), ("CMYK", "TIFF", {}), ("YCbCr", "JPEG", {}), ("RGBA",
        "WEBP", {}),
        ("RGB", "JPEG", {"progressive": True}), ("RGB", "PPM", {}), ("RGB", "AVIF" if features.check("avif") else "BMP", {}),
        ("RGB", "JPEG", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"}), ("RGB", "JPEG", {"exif": turned}),
        ("RGB", "TIFF", {"exif": turned}), ("RGB", "PNG", {"exif": turned}),
    ):
        yield "odd but whole", encoded(mode, format=format, **options), "used"
    for content in (floats([[0, 0.5], [0.25, 1]]), png(1, 1, data=b"\0\1\2\3"), jpeg + b"junk behind"):
        yield "odd but whole", content, "used"


# --------------------------------------------------------------------------------------------------------- caption files


def rows(d=",", n=GOOD):
    return [f"{i % 8}.png{d}caption number {i}" for i in range(n)]


def put(lines, at, *more):
    return [*lines[:at], *more, *lines[at:]]


def text(lines, end="\n", header=""):
    return end.join([header] * bool(header) + lines) + end


def coco(captions, **more):
    return json.dumps({"images": [{"id": i, "file_name": f"{i}.png"} for i in range(8)] + more.get("images", []),
                       "annotations": [{"image_id": i, "caption": c} for i, c in captions] + more.get("annotations", [])})


JUNK = (
    ("{", "line is not JSON"), ("[" * 100_000, "line is not JSON"), ("9" * 5000, "line is not JSON"),
    ("[1]", "record without an image and a caption"), ('{"image": "1.png"}', "record without an image and a caption"),
    ("NaN", "record without an image and a caption"), ('{"image": null, "caption": "x"}', "image is not named by text"),
    ('{"image": "1.png", "caption": 5}', "caption is not text"), ('{"image": "1.png", "caption": " "}', "caption empty"),
)
NOTHING = (
    ("a.csv", "", "at least one image"), ("a.csv", "picture,words\n1.png,x\n", "Accepted names"), ("a.json", "{",
    "got no JSON"),
    ("a.json", "[" * 100_000, "got no JSON"), ("a.json", '{"foo": 1}', "an object with foo"),
    ("a.tsv", "dog\thttp://x.org/z.png\n", "img2dataset"), ("a.csv", "\x89PNG\r\n\x1a\n\0\0", "expected a header"),
    ("a.csv", "image;caption\n", "at least one image"), ("a.parquet", "x", "save it as CSV"),
)
MISSING = {"image missing": 1, "captions of skipped images": 1}
LEAVES = {"path leaves the folder": 1, "captions of skipped images": 1}


def caption_files(outside):
    """(family, file name, content, captions kept beyond GOOD, skipped, converted), or (family, file name, content, words of
    the error)."""
    for name, d in (("a.csv", ","), ("a.tsv", "\t")):
        yield from (("open quotes", name, *rest) for rest in open_quotes(d))
    yield from (("dialects", *rest) for rest in dialects())
    yield from (("bytes that are no text", *rest) for rest in no_text())
    lines = [json.dumps({"image": f"{i % 8}.png", "caption": f"caption number {i}"}) for i in range(GOOD)]
    for junk, reason in JUNK:
        yield "records that are none", "a.jsonl", text(put(lines, 5, junk)), 0, {reason: 1}, {}
    yield from (("annotations that do not fit", "a.json", *rest) for rest in annotations())
    for name in ("../secret.png", "../../outside/secret.png", str(outside / "secret.png"), "..\\secret.png", "C:\\secret.png",
                 "~/x.png", "out.png", "up/secret.png"):
        yield "names that lead outside", "a.jsonl", text([*lines, json.dumps({"image": name, "caption": "x"})]), 0, LEAVES, {}
    for name, reason in (("http://x.org/secret.png", "picture is a URL, its file is not here"), ("folder",
        "not a regular file"),
                         ("file:///etc/passwd", "image missing"), ("loop.png", "image missing"), ("x" * 5000, "image missing")):
        yield "names without a file", "a.csv", text([*rows(), f"{name},x"]), 0, {reason: 1, "captions of skipped images": 1}, {}
    for name, content, words in NOTHING:
        yield "nothing to read: one clear error", name, content, words


def open_quotes(d):
    quoted = [f'{row.replace(d, d + chr(34))}"' for row in rows(d)]
    for at in (1, 7, 19):
        yield text(put(rows(d), at, f'3.png{d}"never closed')), 1, {}, {UNCLOSED: 1}
        yield text(put(quoted, at, f'3.png{d}"never closed')), 1, {}, {UNCLOSED: 1}
    closers = f'3.png{d}"open', f'4.png{d}a 5" pipe', f'5.png{d}"a ""b"""', f'6.png{d}at the end 5"'
    yield text(put(rows(d), 4, *closers)), 4, {}, {UNCLOSED: 1}
    yield text(put(rows(d), 4, closers[0], closers[3])), 2, {}, {UNCLOSED: 1}
    yield text([*rows(d), f'1.png{d}"open {d} twice']), 0, {"malformed row": 1}, {}
    yield text(put(rows(d), 9, *[f'{i % 8}.png{d}"open {i}' for i in range(50)])), 50, {}, {UNCLOSED: 50}


def dialects():
    for dialect in ("excel", "excel-tab", "unix"):
        stream = io.StringIO(newline="")
        writer = csv.writer(stream, dialect)
        writer.writerow(("file_name", "text", "url"))
        writer.writerows((f"{i % 8}.png", f'"q{i}",\n\ttwo', "u") for i in range(GOOD))
        writer.writerow(("1.png", "word " * 60_000, ""))
        yield "a.csv", stream.getvalue(), 1, {}, {}
    for end in ("\n", "\r\n", "\r"):
        yield "a.csv", "\ufeff" + text(rows(";"), end, "Path;RAW_Caption"), 0, {}, {}
    yield "a.csv", text(rows(), header="image,caption").encode("utf-16"), 0, {}, {"file is UTF-16, read as such": 1}
    escaped = [f'{i % 8}.png\t"he said \\"{i}\\""' for i in range(GOOD)]
    yield "a.tsv", text(escaped), 0, {}, {"quotes escaped by backslashes": GOOD}
    pipes = [*(f"{i % 8}.png| {i}| a {i}" for i in range(GOOD)), "1.png| 4   no pipe"]
    yield "results.csv", text(pipes, header="image_name| comment_number| comment"), 0, {"wrong number of columns": 1}, {}
    yield "r.token", text([f"{i % 8}.png#{i}\ta {i}" for i in range(GOOD)]), 0, {}, {}
    odd = [*rows(), "1.png", "1.png,a,b", "image,caption", ",", "1.png,x,,"]
    yield "a.csv", text(odd, header="image,caption"), 1, {"wrong number of columns": 2, "header again": 1}, {}
    short = [*(f"{row},u" for row in rows()), "1.png,short"]
    yield "a.csv", text(short, header="image,caption,url"), 1, {}, {"row shorter than the header": 1}


def no_text():
    good = text(rows()).encode()
    yield "a.csv", good + b"1.png,caf\xe9\n", 0, {"line is not UTF-8": 1}, {}
    yield "a.csv", good + b"nul\0.png,x\n", 0, MISSING, {}
    record = b'{"image": "1.png", "caption": "%s"}\n'
    lines = b"".join(b'{"image": "%d.png", "caption": "%d"}\n' % (i % 8, i) for i in range(GOOD))
    yield "a.jsonl", lines + record % b"\xff", 0, {"line is not UTF-8": 1}, {}
    yield "a.jsonl", lines + record % b"\\ud800", 0, {"caption is not valid UTF-8": 1}, {}


def annotations():
    pairs = [(i % 8, f"caption {i}") for i in range(GOOD)]
    notes = [{"image_id": 99, "caption": "x"}, 7, {"caption": "x"}]
    yield coco(pairs, annotations=notes), 0, {"caption of an image that is not listed": 1,
                                              "record without an image and a caption": 2}, {}
    images = [{"id": 3, "file_name": "x"}, {"id": []}]
    yield coco(pairs, images=images), 0, {"second picture of one id": 1, "record without an id and a file_name": 1}, {}
    yield coco([(str(i), c) for i, c in pairs]), 0, {}, {"id is a number here and text there": GOOD}
    splits = ("train", "restval", "train", "restval", "val", "test")
    yield json.dumps({"images": [{"filename": f"{i}.png", "split": split, "sentences": [{"raw": f"{i}"}] * 5}
                                 for i, split in enumerate(splits)]}), 0, {}, {}


# -------------------------------------------------------------------------------------------------------------- archives


def sticker(colour=(200, 30, 40)):
    y, x = np.mgrid[:32, :32] + 0.5 - 16
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[..., :3], pixels[..., 3] = colour, np.where(x * x + y * y < 196, 255, 0)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def zipped(*members, good=2, compression=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for i in range(good):
            archive.writestr(f"good{i}.png", sticker((i * 50, 9, 99)))
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def patched(data, field, value):
    """Bytes of the last entry of the central directory overwritten."""
    at = data.rindex(b"PK\x01\x02") + field
    return data[:at] + value + data[at + len(value):]


def archives():
    """(family, content, pictures used, skipped) or (family, content, words of the error)."""
    ok = sticker()
    for name in ("../evil.png", "../../etc/evil.png", "/evil.png", "..\\evil.png", "C:/evil.png", "a/../../evil.png"):
        yield "names that lead outside", zipped((name, ok)), 2, {"unsafe name": 1}
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    yield "names that lead outside", zipped((link, "../../outside/secret.png")), 2, {"not a PNG file": 1}
    one = zipped(("zz.png", ok))
    for field, value, reason in (                                 # flags, method, checksum, two sizes, place of the data
        (8, b"\1\0", "encrypted"), (10, b"\x63\0", "damaged in the zip"), (16, b"\0\1\2\3", "damaged in the zip"),
        (24, b"\x10\0\0\0", "damaged in the zip"), (24, b"\0\0\0\x70", "file too large"),
        (42, b"\0\0\0\x70", "damaged in the zip"),
    ):
        yield "lying headers", patched(one, field, value), 2, {reason: 1}
    whole = zipped(("zz.png", ok), compression=zipfile.ZIP_STORED)
    at = whole.rindex(b"IDAT") + 12
    yield "lying headers", flipped(whole, at), 2, {"damaged in the zip": 1}
    yield "bombs", zipped(("zeros.png", bytes(9 * 2**20))), 2, {"file too large": 1}
    yield "bombs", zipped(("huge.png", png(60_000, 60_000))), 2, {"picture too large": 1}
    yield "bombs", zipped(("wide.png", png(3000, 10))), 2, {"picture too large": 1}
    yield "bombs", zipped(("nested.zip", one)), 2, {"not a PNG file": 1}
    yield "bombs", zipped(*((f"{i}", b"") for i in range(20_001))), "at most 20000 files"
    yield "damaged members", zipped(("cut.png", ok[:150])), 2, {"picture damaged": 1}
    idat = ok.index(b"IDAT")
    yield "damaged members", zipped(("crc.png", flipped(ok, idat + 8))), 2, {"picture damaged": 1}
    yield "damaged members", zipped(("empty.png", b""), ("jpeg.png", encoded(format="JPEG")), ("notes.txt", b"x")), 2, {
        "not a PNG file": 3}
    yield "damaged members", zipped(("deep/good0.png", ok), ("opaque.png", encoded())), 2, {
        "second picture of one id": 1, "no transparency": 1}
    yield "damaged members", zipped(("clear.png", plain("RGBA", (8, 8), "PNG"))), 2, {"nothing visible": 1}
    yield "damaged members", zipped((" .png", ok)), 2, {"picture without a name": 1}
    for content in (b"", b"PK\3\4 nothing else", one[:len(one) // 2], b"Rar!\x1a\7\0", b"\x1f\x8b\x08", os.urandom(3000)):
        yield "no archive: one clear error", content, "expected a folder or a zip file"
