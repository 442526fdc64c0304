"""Stranger things that bench/hostile_data.py plants: formats within formats, headers that lie, encodings, archives by hand.

As hostile_inputs.py: every family is said as (family, content, right ...) before anything is read.
"""

import gzip
import io
import json
import struct
import zipfile
import zlib

import numpy as np
from hostile_inputs import (
    DAMAGED,
    GOOD,
    MISSING,
    UNCLOSED,
    chunk,
    encoded,
    flipped,
    plain,
    put,
    rows,
    sticker,
    text,
    zipped,
)
from PIL import Image

from sparc_ref.data.pictures import named

# -------------------------------------------------------------------------------------------------------------- pictures


def frames(format, n=3, **options):
    made = [Image.new("RGB", (20, 16), (60 * i, 9, 9)) for i in range(n)]
    stream = io.BytesIO()
    made[0].save(stream, format, save_all=True, append_images=made[1:], **options)
    return stream.getvalue()


def png_of(*chunks, width=4, height=3, depth=8, colour=2, interlace=0, data=None):
    """A PNG with further chunks before its pixels."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = b"\0" + bytes(range((width * channels * depth + 7) // 8))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunk(*c) for c in chunks)
            + chunk(b"IDAT", zlib.compress(row * height if data is None else data)) + chunk(b"IEND", b""))


def tiff(*tags, data=bytes(range(48)), order="<"):
    """A TIFF of 4 x 4 RGB pixels whose tags may be replaced.      tags: (tag, type 3 short or 4 long, value)"""
    fields = {256: (3, 4), 257: (3, 4), 258: (3, 8), 259: (3, 1), 262: (3, 2), 273: (4, 8), 277: (3, 3), 278: (3, 4),
        279: (4, 48)}
    fields |= {tag: (kind, value) for tag, kind, value in tags}
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data)) + data
    out += struct.pack(order + "H", len(fields))
    for tag, (kind, value) in sorted(fields.items()):
        out += struct.pack(order + "HHI", tag, kind, 1) + (
            struct.pack(order + "HH", value, 0) if kind == 3 else struct.pack(order + "I", value))
    return out + struct.pack(order + "I", 0)


def bmp(pixels, width=4, height=4, bits=8, compression=1):
    """A BMP with a grey palette and these bytes for pixels."""
    palette = b"".join(bytes((i, i, i, 0)) for i in range(256)) if bits == 8 else b""
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(pixels), 2835, 2835, 0, 0)
    offset = 14 + len(head) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset) + head + palette + pixels


def segment(jpeg, marker, data):
    """A JPEG with a further segment behind its first two bytes."""
    return jpeg[:2] + b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data + jpeg[2:]


def pictures():
    jpeg, whole = encoded(format="JPEG", quality=90), encoded()
    for content in (
        frames("PNG"), frames("WEBP"), frames("WEBP", lossless=True), frames("GIF"), frames("TIFF"), frames("MPO"),
        frames("TIFF", compression="tiff_lzw"), frames("GIF", disposal=3, transparency=0),
    ):
        yield "several pictures in one", content, "used"

    for content in (
        png_of(depth=16), png_of(depth=16, colour=6), png_of(depth=16, colour=4), png_of((b"tRNS", bytes(6))),
        png_of((b"PLTE", bytes(12)), (b"tRNS", b"\0\x80"), colour=3, depth=2), png_of(interlace=1, data=bytes(400)),
        png_of((b"PLTE", bytes(6)), colour=3, depth=1), png_of(colour=0, depth=4), png_of((b"gAMA", bytes(4))),
        encoded("CMYK", format="JPEG", quality=90), encoded("CMYK", format="TIFF", compression="tiff_lzw"),
        encoded("LAB", format="TIFF"), encoded(format="TIFF", compression="jpeg"),
        encoded(format="TIFF", compression="tiff_deflate"),
        tiff(), tiff(order=">"), encoded("1", format="TIFF", compression="group4"), encoded("L", format="JPEG"),
        encoded("1", format="PPM"), encoded("I;16", format="PPM"), b"P2\n2 2\n9\n1 2\n# words\n3 4\n", b"P1 2 2 1 0 0 1",
        bmp(b"\4\1\0\0" * 4 + b"\0\1"), bmp(b"\0\4\1\2\3\4\0\0" * 4 + b"\0\1"), bmp(bytes(range(16)), compression=0),
        bmp(bytes(32), bits=16, compression=0), bmp(bytes(64), bits=32, compression=0), bmp(bytes(range(16)),
        4, -4, compression=0),
        jpeg[:2] + b"\xff" * 9 + jpeg[2:], jpeg + jpeg, whole + jpeg, encoded(format="JPEG", subsampling=2, quality=1),
        encoded(format="JPEG", restart_marker_blocks=1),
    ):
        yield "seldom met, whole", content, "used"
    yield "seldom met, whole", flipped(flipped(encoded(format="GIF"), 6, 40), 8, 30), "used"     # its first frame has a size

    nest = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x8769, 4, 1, 8, 8)          # a directory inside itself
    many = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 5000) + struct.pack(">HHII", 0x0112, 3, 2**31, 6) * 5000
    for content in (
        png_of((b"iCCP", b"x\0\0" + zlib.compress(b"no profile"))), png_of((b"iCCP", b"x\0\0garbage")),
        png_of((b"tEXt", b"k\0" + b"x" * 3_000_000)), png_of((b"eXIf", b"garbage")), png_of((b"eXIf", nest[6:])),
        png_of((b"pHYs", bytes(9)), (b"tIME", b"\xff" * 7)), png_of((b"sRGB", b"\xff")), png_of((b"vpAg", bytes(9))),
        encoded(format="JPEG", icc_profile=b"no profile" * 20_000), encoded(format="TIFF", icc_profile=b"x" * 300_000),
        encoded(format="WEBP", icc_profile=b"no profile"), encoded(format="JPEG", comment=b"\xff\0\xfe" * 20_000),
        segment(jpeg, 0xE1, nest), segment(jpeg, 0xE1, many),
        segment(jpeg, 0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:" + b"<a>" * 9999),
        segment(jpeg, 0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff"),
        segment(jpeg, 0xED, b"Photoshop 3.0\x008BIM\4\4\0\0\xff\xff\xff\xff"),
        segment(jpeg, 0xEE, b"Adobe\0d\0\0\0\0\7"), encoded(format="WEBP", exif=nest[6:]),
        encoded(format="TIFF", exif=many[6:]),
    ):
        yield "metadata that lies or swells", content, "used"
    yield "metadata that lies or swells", png_of((b"zTXt", b"k\0\0" + zlib.compress(bytes(70_000_000)))), "image too large"

    progressive = encoded(format="JPEG", progressive=True, quality=90)
    scans = [i for i in range(len(progressive) - 1) if progressive[i:i + 2] == b"\xff\xda"]
    size = jpeg.index(b"\xff\xc0") + 5
    for content in (progressive[:scans[1]], progressive[:scans[3] + 40], progressive[:-30], jpeg[:-2][:len(jpeg) // 2]):
        yield "truncated or of no size", content, "image truncated"
    for content in (
        jpeg[:size] + b"\0\0\0\0" + jpeg[size + 4:], jpeg[:size] + b"\xff\xff\0\x28" + jpeg[size + 4:], png_of(width=0,
        data=b""),
        png_of(height=0, data=b""), bmp(b"", 0, 4), bmp(b"", 4, 0),
        b"P6 0 4 255\n", b"P6 4 0 255\n", tiff((256, 3, 0)), tiff((257, 3, 0)), frames("WEBP")[:40], frames("GIF")[:30],
        b"RIFF\xff\xff\xff\x7fWEBPVP8 \xff\xff\xff\x7f", b"P6 4 4 255\n" + bytes(5), b"P5 4 4 0\n" + bytes(16),
        b"P5 4 4 99999\n" + bytes(16),
        b"P2 2 2 9 1 2 x 4", png_of(depth=3), png_of(colour=3), png_of(data=b"\x09" + bytes(200)), png_of(data=b"\0"),
    ):
        yield "truncated or of no size", content, DAMAGED | {"not an image", "image too large"}

    truncated, corrupt, large = "image truncated", "image corrupt", "image too large"
    for content, right in (
        (tiff((273, 4, 2**31)), truncated), (tiff((273, 4, 2**32 - 1)), truncated), (tiff((279, 4, 2**31)), "used"),
        (tiff((279, 4, 3)), "used"), (tiff((278, 4, 0)), corrupt), (tiff((259, 3, 5)), corrupt), (tiff((259, 3, 7)), corrupt),
        (tiff((277, 3, 9)), corrupt), (tiff((258, 3, 77)), corrupt), (tiff((262, 3, 99)), corrupt),
        (tiff((322, 4, 2**31), (323, 4, 2**31), (324, 4, 8)), "used"),
        # its strips are there all the same
        (tiff((256, 4, 2**31 - 1)), large), (tiff((256, 4, 7000), (257, 4, 7000)), DAMAGED | {large}),
        (bmp(b"\0\2\xff\xff\0\1"), "used"), (bmp(b"\xff\xff" * 400 + b"\0\1"), DAMAGED), (bmp(b"\0\xff\1"), DAMAGED),
        (bmp(b""), DAMAGED), (bmp(b"\0\1", bits=4, compression=2), DAMAGED), (bmp(bytes(4), bits=33), corrupt),
        (bmp(bytes(16), compression=9), corrupt), (bmp(bytes(16), 4, -2**31, compression=0), large),
        (bmp(b"\4\1\0\1", 3000, 3000), DAMAGED),
    ):
        yield "strips, tiles and runs that lie", content, right

    for content, right in (
        (plain("RGB", (16, 16), "ICO"), "Windows icon, not read"), (b"\0\0\2\0" + plain("RGB", (16, 16),
        "ICO")[4:], "not an image"),
        (b"qoif" + struct.pack(">IIBB", 2, 2, 3, 0) + b"\xc3" + bytes(7) + b"\1", "QOI, not read"),
        (plain("RGB", (8, 8), "DDS"), "DDS, not read"), (plain("RGB", (8, 8), "EPS"), "not an image"),
        (b"8BPS\0\1" + bytes(20), "Photoshop, not read"), (b"\x76\x2f\x31\x01\2\0\0\0", "OpenEXR, not read"),
        (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 2 +X 2\n", "Radiance HDR, not read"), (plain("RGB", (8, 8), "TGA"),
        "not an image"),
        (plain("P", (8, 8), "PCX"), "not an image"), (plain("RGB", (16, 16), "SGI"), "not an image"), (plain("RGB", (8, 8),
        "PDF"), "not an image"),
        (plain("RGB", (16, 16), "ICNS"), "not an image"), (plain("1", (8, 8), "XBM"), "not an image"),
        (b"<?xml version='1.0'?>\n<!-- x -->\n<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG, not read"),
        (b"\xef\xbb\xbf \n<svg/>", "SVG, not read"), (gzip.compress(b"<svg/>"), "not an image"),
        (b"P7\nWIDTH 1\n", "not an image"),
        (b"gimp xcf v011\0", "GIMP, not read"), (b"BPG\xfb" + bytes(9), "not an image"), (b"II+\0\x08\0\0\0" + bytes(60),
        DAMAGED | {"not an image"}),
        (b"\x00\x00\x00\x14ftypqt  ", "not an image"), (b"\x93NUMPY\1\0", "not an image"), (b"MZ" + bytes(99), "not an image"),
    ):
        yield "other kinds under the name .jpg", content, right


# --------------------------------------------------------------------------------------------------------- caption files


UTF16 = {"file is UTF-16, read as such": 1}
JSONL = [json.dumps({"image": f"{i % 8}.png", "caption": f"caption number {i}"}) for i in range(GOOD)]
ODD_NAMES = (                                                     # a name in a record of its own, and the reason
    ("../up/secret.png", "path leaves the folder"), ("....//secret.png", "image missing"),
    ("/etc/passwd", "path leaves the folder"),
    ("%2e%2e/secret.png", "image missing"), ("1%2epng", "image missing"),
    ("folder/../../1.png", "path leaves the folder"), ("CON", "image missing"), ("nul.png", "image missing"),
    ("1.png:stream", "image missing"), (".", "not a regular file"), ("/", "path leaves the folder"),
    ("1.png\u200b", "image missing"),
    ("\u202egnp.1", "image missing"), ("//1.png.exe", "path leaves the folder"), ("*.png", "image missing"),
    ("[0-7].png", "image missing"),
    ("out.png/x", "image missing"), ("up/../1.png", "path leaves the folder"),
    ("folder/.././1.png", "path leaves the folder"), ("\uff11.png", "image missing"), ("1e5", "image missing"),
    ("0x1", "image missing"), ("١", "image missing"), ("-1", "image missing"), ("1.0", "image missing"),
    ("data:image/png;base64,AAAA", "image missing"), ("http://[bad/1.gif", "picture is a URL, its file is not here"),
    ("https://x.org/?f=9.png#1.png", "picture is a URL, its file is not here"), ("\ud800.png", "image missing"),
)
FOLDER, END = "found in another folder", "absolute path, found by its end"
OTHER_WORDS = (                                                   # for 7.png, which nothing else names, and what is said of it
    ("./7.png", None), (" 7.png ", None), ("7.PNG", "other case of the name"), ("7", "name completed by its extension"),
    ("0007", "number completed to a file's name"), ("images\\7.png", FOLDER), ("x/y/7.png", FOLDER), ("file://7.png", FOLDER),
    ("$HOME/7.png", FOLDER), ("loop.png/7.png", FOLDER), ("D:\\photos\\7.png", END), ("\\\\server\\share\\7.png", END),
    ("/home/me/7.png", END), ("https://x.org/a/7.png?size=9#x", "URL, the local file of its name taken"),
    (7, "name completed by its extension"),
)


def caption_files(outside):
    header = text(rows(), header="image,caption")
    for encoding, mark, right in (
        ("utf-8-sig", b"", {}), ("utf-16-le", b"\xff\xfe", UTF16), ("utf-16-be", b"\xfe\xff", UTF16), ("utf-16-le", b"", UTF16),
        ("utf-16-be", b"", UTF16),
    ):
        for name, content in (("a.csv", header), ("a.tsv", text(rows("\t"))), ("a.jsonl", text(JSONL)),
            ("a.json", f"[{','.join(JSONL)}]")):
            yield "encodings", name, mark + content.encode(encoding), 0, {}, right
    for encoding in ("latin-1", "cp1252", "shift_jis", "koi8-r", "gb18030"):
        word = {"shift_jis": "犬", "koi8-r": "собака", "gb18030": "狗"}.get(encoding, "caf\u00e9")
        yield "encodings", "a.csv", header.encode() + f"1.png,{word}\n".encode(encoding), 0, {"line is not UTF-8": 1}, {}
    for encoding in ("utf-32", "utf-32-le", "utf-32-be"):
        yield "encodings", "a.csv", header.encode(encoding), "UTF-32"
    yield "encodings", "a.csv", b"\xef\xbb\xbf\xef\xbb\xbf" + header.encode(), 0, {}, {}
    yield "encodings", "a.csv", header.encode() + b"\x1a", 0, {}, {}                              # the end of a file in DOS
    yield "encodings", "a.csv", header.encode() + b"1.png,\xed\xa0\x80\n", 0, {"line is not UTF-8": 1}, {}
    yield "encodings", "a.csv", header.encode() + b"1.png,\xc0\xaf\n", 0, {"line is not UTF-8": 1}, {}
    yield "encodings", "a.csv", header.encode() + "1.png,a\u2028b\x85c\x0bd\x1ce\n".encode(), 1, {}, {}
    yield "encodings", "a.jsonl", (text(JSONL) + '{"image": "1.png", "caption": "a\u2028b\x85c"}\n').encode(), 1, {}, {}

    yield "lines", "a.csv", header + "1.png," + "word " * 2_000_000 + "\n", 1, {}, {}              # 10 MB
    yield "lines", "a.jsonl", text([*JSONL, json.dumps({"image": "1.png", "caption": "x" * 10_000_000})]), 1, {}, {}
    yield "lines", "a.csv", "\n\n\n" + header.replace("\n", "\n\n \n"), 0, {}, {}
    yield "lines", "a.jsonl", "\n \n\t\n".join(["", *JSONL, ""]), 0, {}, {}
    mixed = "".join(line + end for line, end in zip(["image,caption", *rows()], ["\n", "\r\n", "\r"] * 9))
    yield "lines", "a.csv", mixed, 0, {}, {}
    yield "lines", "a.csv", header.rstrip("\n"), 0, {}, {}
    yield "lines", "a.jsonl", "\r\n".join(JSONL), 0, {}, {}
    yield "lines", "a.jsonl", "\x1e" + "\n\x1e".join(JSONL), "at least one image"                   # RFC 7464, no JSON lines
    yield "lines", "a.jsonl", ",\n".join(JSONL), 1 - GOOD, {"line is not JSON": GOOD - 1}, {}

    nul = header + "1.png,a\0b\n"
    yield "odd cells", "a.csv", nul, 1, {}, {}
    yield "odd cells", "a.csv", text(rows(";"), header="\ufeffimage;caption"), 0, {}, {}
    yield "odd cells", "a.tsv", text([*rows("\t"), '1.png\t"a\ttab in quotes"'], header="image\tcaption"), 1, {}, {}
    yield "odd cells", "a.csv", text(put(rows(), 5, '1.png,""""'), header="image,caption"), 1, {}, {}
    yield "odd cells", "a.csv", text(put(rows(), 5, '1.png,"'), header="image,caption"), 1, {}, {UNCLOSED: 1}
    yield "odd cells", "a.csv", text(put(rows(), 5, '"1.png,a"'), header="image,caption"), 0, {"wrong number of columns": 1}, {}
    yield "odd cells", "a.csv", text(put(rows(), 5, '"1.png","a"b'), header="image,caption"), 0, MISSING, {UNCLOSED: 1}
    yield "odd cells", "a.csv", text(put(rows(), 0, "image,caption"), header="image,caption"), 0, {"header again": 1}, {}
    yield "odd cells", "a.csv", text(put(rows(), 9, "IMAGE, Caption "), header="image,caption"), 0, {"header again": 1}, {}
    yield "odd cells", "a.csv", text([f"{i},{row}" for i, row in enumerate(rows())], header=",image,caption"), 0, {}, {}
    yield "odd cells", "a.csv", text([f"{row},{'x,' * 500}" for row in rows()], header="image,caption," + ",".join(map(str,
        range(501)))), 0, {}, {}
    yield "odd cells", "a.csv", text([f"{i % 8}.png,{cell}" for i, cell in enumerate(["=1+1", "-1", "@x", "NaN", "null", "1e5",
        "TRUE"] * 3)],
                                     header="image,caption"), 1, {}, {}
    yield "odd cells", "a.csv", "sep=;\n" + text(rows(";"), header="image;caption"), 0, {}, {}
    yield "odd cells", "a.csv", "# a comment\n" + header, "expected a header"
    yield "odd cells", "a.csv", text(["1.png,", *rows()], header="image,caption"), 0, {"caption empty": 1}, {}
    yield "odd cells", "a.csv", text([",x", '"",y', *rows()], header="image,caption"), 0, {"image is not named by text": 2}, {}
    yield "odd cells", "a.txt", text([f"{row}" for row in rows(" | ")], header="image | caption"), 0, {}, {}

    for junk, skipped, extra in (
        ('{"image": "1.png", "caption": NaN}', {"caption is not text": 1}, 0),
        ('{"image": Infinity, "caption": "x"}', {"image is not named by text": 1}, 0),
        ('{"image": 1e5, "caption": "x"}', {"image is not named by text": 1}, 0),
        ('{"image": true, "caption": "x"}', {"image is not named by text": 1}, 0),
        ('{"image": "1.png", "image": "2.png", "caption": "x"}', {"image is not named by text": 1}, 0),
        ('{"image": "1.png", "caption": "x", "caption": "y"}', {}, 2),
        ('{"image": "1.png", "caption": {"en": "x"}}', {"caption is not text": 1}, 0),
        ('{"image": "1.png", "caption": [["x"], null, "y", 3]}', {"caption is not text": 3}, 1),
        ('{"image": "1.png", "caption": []}', {}, 0),
        ('{"image": ["1.png"], "caption": "x"}', {"image is not named by text": 1}, 0),
        ('{"": 1}', {"record without an image and a caption": 1}, 0),
        ('{"IMAGE": "1.png", " Caption ": "x"}', {}, 1), ('"text"', {"record without an image and a caption": 1}, 0),
        ("{} {}", {"line is not JSON": 1}, 0),
        ('{"image": "1.png", "caption": "x"} // why', {"line is not JSON": 1}, 0),
        ("{'image': '1.png', 'caption': 'x'}", {"line is not JSON": 1}, 0),
        ('{"image": "1.png", "caption": "tab\there"}', {"line is not JSON": 1}, 0),
        ('{"a":' * 30_000, {"line is not JSON": 1}, 0),
        ('{"image": "1.png", "caption": "\\ud83d\\ude00"}', {}, 1), ('{"image": "1.png", "caption": "\\u0000"}', {}, 1),
        ('{"image": "1.png", "caption": "x", "more": ' + "[" * 900 + "]" * 900 + "}", {}, 1),
        ('{"image": "1.png", "caption": "x", "split": 5}', {}, 1),
        ('{"image": "1.png", "caption": "\u00a0\u2003"}', {"caption empty": 1}, 0),
    ):
        yield "records that are none", "a.jsonl", text(put(JSONL, 5, junk)), extra, skipped, {}
    for name, reason in ODD_NAMES:
        yield "names of nothing", "a.jsonl", text([*JSONL, json.dumps({"image": name, "caption": "x"})]), 0, (
            {reason: 1, "captions of skipped images": 1}), {}
    seven = [json.dumps({"image": f"{i % 7}.png", "caption": f"caption number {i}"}) for i in range(GOOD)]
    for name, said in OTHER_WORDS:
        record = json.dumps({"image": name, "caption": "x"})
        yield "names in other words", "a.jsonl", text([*seven, record]), 1, {}, {said: 1} if said else {}


# -------------------------------------------------------------------------------------------------------------- archives


def by_hand(*entries, end=b"", good=1):
    """A zip written field by field.

    entries: (name, content, what differs), of flags, method, crc, size, packed (bytes), stored (how many), offset, extra, mode
    """
    out, central = io.BytesIO(), b""
    for name, content, lies in [*((f"good{i}.png", sticker((i * 50, 9, 99)), {}) for i in range(good)), *entries]:
        at, packed = out.tell(), lies.get("packed", content)
        fields = (20, lies.get("flags", 0), lies.get("method", 0), 0, 0x21, lies.get("crc", zlib.crc32(content)),
                  lies.get("stored", len(packed)), lies.get("size", len(content)))
        extra = lies.get("extra", b"")
        out.write(b"PK\3\4" + struct.pack("<5H3I2H", *fields, len(name.encode()), len(extra)) + name.encode() + extra + packed)
        central += b"PK\1\2" + struct.pack("<6H3I5H2I", 20, *fields, len(name.encode()), len(extra),
        0, 0, 0, lies.get("mode", 0) << 16,
                                           lies.get("offset", at)) + name.encode() + extra
    at = out.tell()
    count = good + len(entries)
    return out.getvalue() + central + b"PK\5\6" + struct.pack("<4H2IH", 0, 0, count, count, len(central), at, len(end)) + end


def archives():
    ok = sticker()
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_STORED):
        yield "ways of packing", zipped(("zz.png", ok), compression=method), 3, {}
    yield "ways of packing", by_hand(("a.png", ok, {"method": 9})), 1, {"damaged in the zip": 1}     # deflate64
    yield "ways of packing", by_hand(("a.png", ok, {"method": 14,
        "packed": b"\0\0\5\0]\xff\xff\xff\xff"})), 1, {"damaged in the zip": 1}
    yield "ways of packing", by_hand(("a.png", ok, {"method": 12, "packed": b"BZh9junk"})), 1, {"damaged in the zip": 1}
    yield "ways of packing", by_hand(("a.png", ok, {"method": 93})), 1, {"damaged in the zip": 1}    # zstandard
    yield "ways of packing", by_hand(("a.png", ok, {"flags": 1})), 1, {"encrypted": 1}
    yield "ways of packing", by_hand(("a.png", ok, {"flags": 0x41})), 1, {"encrypted": 1}
    yield "ways of packing", by_hand(("a.png", ok, {"flags": 0x20})), 1, {"damaged in the zip": 1}   # a patch
    for lies, reason in (
        ({"crc": 5}, "damaged in the zip"), ({"size": 4, "stored": 4}, "damaged in the zip"),
        ({"offset": 2**31}, "damaged in the zip"), ({"offset": 7}, "damaged in the zip"), ({"offset": 0}, "damaged in the zip"),
        ({"extra": b"\1\0\x10\0" + bytes(16), "size": 2**32 - 1, "stored": 2**32 - 1}, "damaged in the zip"),
        ({"extra": b"\1\0\x08\0" + struct.pack("<Q", 2**62), "size": 2**32 - 1}, "file too large"),
    ):
        yield "headers that lie", by_hand(("a.png", ok, lies)), 1, {reason: 1}
    yield "headers that lie", by_hand(("a.png", ok, {"extra": b"\1\0\xff\xff"})), "expected a folder or a zip file"
    yield "headers that lie", by_hand(("a.png", ok, {"stored": 2**31})), 2, {}                     # all of it is there
    yield "headers that lie", by_hand(("a.png", ok, {}), end=b"x" * 60_000), 2, {}
    yield "headers that lie", b"#!/bin/sh\nexit\n" + by_hand(("a.png", ok, {})), 2, {}
    yield "headers that lie", by_hand(("a.png", ok, {})) + b"junk behind", 2, {}
    names = (("a.png", ok, {}), ("a.png", ok, {}))
    yield "names", by_hand(*names), 2, {"second picture of one id": 1}
    yield "names", by_hand(("A.png", ok, {}), ("a.PNG", ok, {})), 3, {}
    yield "names", by_hand(("dir\\a.png", ok, {})), 2, {}
    yield "names", by_hand(("dir/", ok, {}), ("dir.png/", ok, {}), ("dir.png/a.png", ok, {})), 2, {}
    yield "names", by_hand(("a.png\0.txt", ok, {})), 2, {}
    yield "names", by_hand(("a..png", ok, {}), ("x/..", ok, {}), ("x/.png", ok, {})), 2, {"unsafe name": 1,
        "picture without a name": 1}
    yield "names", by_hand(("CON.png", ok, {}), ("a:b.png", ok, {}), ("\u202egnp.png", ok, {})), 3, {"unsafe name": 1}
    yield "names", by_hand(("link.png", b"/etc/passwd", {"mode": 0o120777})), 1, {"not a PNG file": 1}
    yield "names", by_hand(("pipe.png", ok, {"mode": 0o010644}), ("dev.png", ok, {"mode": 0o060644})), 3, {}
    yield "names", by_hand(("x" * 60_000 + ".png", ok, {})), 2, {}
    yield "names", by_hand((" \t.png", ok, {}), ("-_-.png", ok, {})), 1, {"picture without a name": 2}
    same = by_hand(("a.png", ok, {}), ("b.png", ok, {"offset": 0}), good=0)
    yield "entries that overlap", same, 1, {"damaged in the zip": 1}
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = bomb.compress(bytes(64 * 2**20)) + bomb.flush()
    lies = {"method": 8, "stored": len(packed), "size": 100, "crc": 0}
    entries = [(f"a{i}.png", b"", lies | {"packed": b"" if i else packed}) for i in range(60) if named(f"a{i}")[1] == "train"]
    yield "entries that overlap", by_hand(*entries), 1, {"damaged in the zip": len(entries)}
    for content in (zipped(good=0), zipped(("a.txt", b"x"), good=0), zipped(("a.png", b""), good=0)):
        yield "no archive, or no picture: one clear error", content, "expected at least 1 pictures"
    npz = io.BytesIO()
    np.savez(npz, a=np.zeros(3))
    yield "no archive, or no picture: one clear error", npz.getvalue(), "expected at least 1 pictures"
    for content in (struct.pack("<Q", 2**63) + b"{}", gzip.compress(b"x"),
        b"7z\xbc\xaf\x27\x1c", b"x" * 257 + b"ustar\0", b"PK\5\6" + b"\xff" * 18,
                    b"PK\6\6" + bytes(60) + b"PK\6\7" + b"\xff" * 16 + b"PK\5\6" + b"\xff" * 18):
        yield "no archive, or no picture: one clear error", content, "expected a folder or a zip file"
