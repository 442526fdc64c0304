"""Masks as people keep them: PNGs whose pixels are labels, COCO's run lengths and polygons."""

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .images import _bytes, _orientation, formats, verify
from .load_report import Unusable

MAX_PIXELS = 25_000_000                                           # of one mask: 5,000 x 5,000


def read_labels(file: Path) -> np.ndarray:
    """The labels in a PNG: a palette's indices, or grey values of 8 or 16 bits.      -> (H,W) uint8 or uint16

    Unusable: missing, damaged, too large, in colour (no one can tell which colour is which label).
    """
    from PIL import Image

    data = _bytes(file)
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            warnings.simplefilter("ignore")
            check_area(*image.size)
            if image.mode not in ("P", "L", "1") and not image.mode.startswith("I;16"):
                raise Unusable("mask is not made of labels", f"mode {image.mode}; expected a palette or grey values")
            verify(data)
            x = np.asarray(image)
    except Unusable:
        raise
    except Image.UnidentifiedImageError as error:
        raise Unusable("mask is no PNG") from error
    except Exception as error:                                    # decoders raise nearly anything on damaged files
        raise Unusable("mask corrupt", f"{type(error).__name__}: {error}") from error
    return x.astype(np.uint8 if x.dtype == np.bool_ else x.dtype)


def picture_size(file: Path) -> tuple[int, int]:
    """Height and width of a picture as read_image shows it, upright, by its header.   Unusable where there is none"""
    from PIL import Image

    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(_bytes(file)), formats=formats()) as image:
            warnings.simplefilter("ignore")
            return image.size if _orientation(image) > 4 else image.size[::-1]
    except Unusable:
        raise
    except Exception as error:
        raise Unusable("image corrupt", f"{type(error).__name__}: {error}") from error


def check_area(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Unusable("mask too large", f"{width} x {height} pixels, at most {MAX_PIXELS}")


def decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    """COCO's mask of one object: polygons [[x, y, ...], ...] or run lengths {"size": [h, w], "counts": ...}.  -> (H,W) bool

    ValueError: neither, or it does not fit height and width.
    """
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [height, width]:
            raise ValueError(f"run lengths: expected size [{height}, {width}], the picture's, got {segmentation.get('size')!r}")
        return from_runs(segmentation.get("counts"), height, width)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError(f"segmentation: expected polygons or run lengths, got {str(segmentation)[:40]!r}")
    inside = np.zeros((height, width), bool)
    for polygon in segmentation:
        inside |= fill(polygon, height, width)
    return inside


def from_runs(counts: Any, height: int, width: int) -> np.ndarray:
    """Lengths of runs of outside, inside, outside, ... down the columns; a list, or COCO's letters for it.   -> (H,W) bool"""
    counts = letters(counts) if isinstance(counts, str) else counts
    whole = isinstance(counts, list) and all(type(n) is int and 0 <= n <= height * width for n in counts)
    if not whole or sum(counts) != height * width:
        found = f"{sum(counts)} in {len(counts)} runs" if whole else f"{str(counts)[:40]!r}"
        raise ValueError(f"run lengths: expected whole numbers that sum to {height} x {width} = {height * width}, got {found}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def letters(text: str) -> list[int]:
    """COCO's compressed run lengths: five bits a letter from "0" on, low ones first; from the fourth on differences to the last
    but one.   ValueError: other letters, or it ends within a number"""
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        c = ord(letter) - 48
        if not 0 <= c < 64 or shift > 40:
            raise ValueError(f"run lengths: expected COCO's letters, got {letter!r} in {text[:40]!r}")
        value |= (c & 31) << shift
        shift += 5
        if not c & 32:
            value -= (1 << shift) * (c >> 4 & 1)
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError(f"run lengths: expected COCO's letters, got {text[-40:]!r}, which ends within a number")
    return counts


def fill(polygon: Sequence[float], height: int, width: int) -> np.ndarray:
    """The pixels whose centre is inside x, y, x, y, ...; the first pixel's centre is (.5, .5).      -> (H,W) bool"""
    fits = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
    if not fits or not all(type(x) in (int, float) and abs(x) < 1e6 for x in polygon):      # NaN fails this too
        raise ValueError(f"polygon: expected x, y of 3 corners or more, got {str(polygon)[:40]!r}")
    crossed = np.zeros((height, width + 1), np.int64)             # how many edges are crossed on entering each pixel of a row
    corners = [(float(x), float(y)) for x, y in zip(polygon[::2], polygon[1::2])]
    for (x, y), (x1, y1) in zip(corners, [*corners[1:], corners[0]]):
        low, high = (min(max(math.ceil(end - 0.5), 0), height) for end in sorted((y, y1)))
        rows = np.arange(low, high)
        at = np.ceil(x + (rows + 0.5 - y) * ((x1 - x) / (y1 - y if len(rows) else 1)) - 0.5)
        crossed[rows, np.clip(at, 0, width).astype(np.int64)] += 1
    return np.cumsum(crossed, axis=1)[:, :width] % 2 == 1
