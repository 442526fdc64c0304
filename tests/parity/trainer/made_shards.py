"""Tar shards for tests: sound ones, and members of every kind that a hostile one may have."""

import io
import json
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, size: int = 24, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def bomb() -> bytes:
    """A few bytes that say they are a picture of 3.6 gigapixels."""
    data = bytearray(picture(0))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


WORDS = ["red", "green", "blue", "cat", "dog", "sofa", "tree", "car", "old", "new", "big", "small"]


def caption(seed: int) -> str:
    rng = np.random.default_rng([seed, 1])
    return " ".join(rng.choice(WORDS, rng.integers(2, 7)))


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **more) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def sound(seed: int, key: str | None = None) -> list:
    key = f"{seed:06d}" if key is None else key
    return [member(f"{key}.png", picture(seed)), member(f"{key}.txt", caption(seed).encode()),
            member(f"{key}.json", json.dumps({"caption": "from json " + caption(seed)}).encode())]


def write(path: Path, members: list, form: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return path


def shards(folder: Path, sizes: list[int]) -> list[str]:
    """Sound shards of so many samples each."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, seed = [], 0
    for n, size in enumerate(sizes):
        members = [m for i in range(size) for m in sound(seed + i)]
        paths.append(str(write(folder / f"{n:03d}.tar", members)))
        seed += size
    return paths
