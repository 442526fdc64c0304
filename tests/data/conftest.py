import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def samples():
    """The sample data folder, or a skip that says where it was looked for."""
    folder = Path(os.environ.get("SPARC_REF_DATA", Path(__file__).parents[2] / "../shared/data")).resolve()
    if not (folder / "coco").is_dir() or not (folder / "emoji").is_dir():
        pytest.skip(f"no sample data in {folder}; set SPARC_REF_DATA to a folder that holds coco/ and emoji/")
    return folder


@pytest.fixture
def photo():
    """photo(mode, size, format, **options) -> the bytes of an image file with a gradient."""
    def make(mode="RGB", size=(40, 30), format="PNG", **options):
        y, x = np.mgrid[:size[1], :size[0]]
        pixels = np.stack([x * 255 // size[0], y * 255 // size[1], (x + y) % 256], -1).astype(np.uint8)
        image = Image.fromarray(pixels).convert(mode) if mode != "I;16" else Image.fromarray((x * 1600).astype(np.uint16))
        stream = io.BytesIO()
        image.save(stream, format, **options)
        return stream.getvalue()
    return make


@pytest.fixture
def folder(tmp_path, photo):
    """images/ with a.png, b.jpg and sub/c d.png; the caption file is up to the test."""
    (tmp_path / "set" / "images" / "sub").mkdir(parents=True)
    (tmp_path / "set" / "images" / "a.png").write_bytes(photo())
    (tmp_path / "set" / "images" / "b.jpg").write_bytes(photo(format="JPEG"))
    (tmp_path / "set" / "images" / "sub" / "c d.png").write_bytes(photo("L"))
    return tmp_path / "set"


@pytest.fixture
def sticker():
    """sticker(colour, size) -> PNG bytes of a disc of that colour on transparency."""
    def make(colour=(200, 30, 40), size=32, alpha=255):
        y, x = np.mgrid[:size, :size] + 0.5 - size / 2
        pixels = np.zeros((size, size, 4), np.uint8)
        pixels[..., :3] = colour
        pixels[..., 3] = np.where(x * x + y * y < (size / 2 - 2) ** 2, alpha, 0)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        return stream.getvalue()
    return make


def bomb(width=60_000, height=60_000):
    """A PNG of a few bytes whose header promises width x height pixels."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.fixture(name="bomb")
def bomb_fixture():
    return bomb
