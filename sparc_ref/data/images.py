"""Any image file, friendly or hostile, to a square of uint8 RGB.  Needs Pillow (the extra "run")."""

import io
import os
import threading
import warnings
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import numpy as np

from .kinds import unreadable
from .load_report import Unusable

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # none that starts another program, as EPS does
MAX_PIXELS = 64_000_000
MAX_BYTES = 256 * 2**20
MAX_MEMORY = 512 * 2**20                                          # of one picture while it is decoded and made RGB
MAX_SIZE = 4096                                                   # of the square that a picture becomes
MAX_TEXT = 4_000_000                                              # pixels that a file may write in digits: seconds to read
MAX_SCANS = 2**31                                                 # pixels times scans of a JPEG, which may hold thousands
STRIP = 2**18                                                     # pixels that are converted at a time
ALONE = threading.Lock()                                          # pictures that take long and much are decoded one by one


def load_image(path: str | os.PathLike, size: int, how: str = "squash", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """(size, size, 3) uint8 of one file.   ValueError with the reason where it cannot be used"""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                       # Pillow's hints about bombs and odd metadata: checked here
            return read_image(Path(path), size, how, max_pixels)[0]
    except Unusable as error:
        raise ValueError(f"{path}: {error}") from error


@cache
def formats() -> tuple[str, ...]:
    """What this Pillow decodes: FORMATS, and AVIF where it was built with it."""
    from PIL import Image, features

    Image.init()
    return (*FORMATS, "AVIF") if "AVIF" in Image.OPEN and features.check("avif") else FORMATS


def read_image(source: Path | bytes, size: int, how: str = "squash", max_pixels: int = MAX_PIXELS,
               upright: bool = True) -> tuple[np.ndarray, list[str]]:
    """Decode completely, convert to RGB, resize.   -> (size, size, 3) uint8 and what had to be converted

    upright: turn it as its EXIF says; False for pictures whose annotations are of the pixels as they are stored.

    Raises Unusable for anything that is missing, too large, truncated or not one of formats(). Pixels and the memory that they
    will take are checked in the header, before any pixel is decoded. Of animations the first frame is taken.
    """
    from PIL import Image

    data = source if isinstance(source, bytes) else _bytes(source)
    try:
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            if image.width * image.height > max_pixels:
                raise Unusable("image too large", f"{image.width} x {image.height} pixels, at most {max_pixels}")
            check_time(image, data)
            peak = memory(image) + resampling(*image.size, size) + len(data)
            if peak > MAX_MEMORY:
                raise Unusable("image too large", f"{image.width} x {image.height} pixels, {image.format}, mode {image.mode}: "
                                                  f"{peak / 2**20:.0f} MiB to decode, at most {MAX_MEMORY / 2**20:.0f}")
            with ALONE if peak > 2**26 else nullcontext():
                if image.format == "PNG":
                    verify(data)
                image, changes = to_rgb(image, data, upright)
                return resize(image, size, how), changes
    except Unusable:
        raise
    except Image.DecompressionBombError as error:
        raise Unusable("image too large", str(error)) from error
    except Image.UnidentifiedImageError as error:
        raise unreadable(data, formats()) from error
    except Exception as error:                                    # decoders raise nearly anything on damaged files
        words = {"truncated": "image truncated", "data too large": "image too large"}
        reason = next((words[w] for w in words if w in str(error).lower()), "image corrupt")
        raise Unusable(reason, f"{type(error).__name__}: {error}") from error


def _bytes(path: Path) -> bytes:
    try:
        if not path.is_file():                                    # a pipe would block for ever
            raise Unusable("not a regular file" if path.exists() else "image missing")
        if path.stat().st_size > MAX_BYTES:
            raise Unusable("image too large", f"{path.stat().st_size} bytes, at most {MAX_BYTES}")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, Unusable):
            raise
        raise Unusable("image unreadable", str(error)) from error


def memory(image) -> int:
    """Bytes that decoding an opened image and making it RGB take at most: Pillow's storage, the decoder's own, the copies.

    Pillow keeps 4 bytes for a pixel of any mode with several bands. Measured at 36 megapixels, in bytes a pixel: PNG, BMP, GIF
    and plain JPEG take their storage alone; TIFF up to 3 more, progressive JPEG 6, WebP 12, AVIF 5 to 9.
    """
    stored = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}.get(image.mode, 4)
    coefficients = 2 * len(image.getbands()) * ("progressive" in image.info)
    own = {"WEBP": 12, "AVIF": 12, "TIFF": stored, "JPEG": coefficients, "MPO": coefficients}
    copies = stored * (_orientation(image) != 1) + 4 * (image.mode != "RGB" or "transparency" in image.info)
    return image.width * image.height * (stored + own.get(image.format, 0) + copies)


def check_time(image, data: bytes) -> None:
    """Unusable where few bytes, or bytes of another kind, would take minutes: pixels in digits, a JPEG with endless scans."""
    pixels = image.width * image.height
    if image.format == "PPM" and data[:2] in (b"P1", b"P2", b"P3") and pixels > MAX_TEXT:
        raise Unusable("image too large", f"{image.width} x {image.height} pixels written in digits ({data[:2].decode()}), "
                                          f"at most {MAX_TEXT}; save it as JPEG or PNG")
    if "progressive" in image.info and pixels * (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise Unusable("image too large", f"{image.width} x {image.height} pixels in {scans} scans; save it as PNG")


def resampling(width: int, height: int, size: int) -> int:
    """Bytes that resizing takes: 32 for each column and row, which a picture of one line has by the million, 8 for where each
    row starts, twice, and the picture that has its new width already; Pillow starts with the height beyond 100 to 1."""
    return 32 * (width + height) + 2 * 8 * height + (4 * size * height if height <= 100 * width else 0)


def verify(data: bytes) -> None:
    """The checksums of a PNG's pixels, which Pillow verifies only when asked."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            image.verify()
    except Exception as error:
        reason = "image truncated" if "truncated" in str(error).lower() else "image corrupt"
        raise Unusable(reason, f"checksum: {error}") from error


def to_rgb(image, data: bytes, upright: bool = True):
    """Turn upright and convert to RGB.   -> PIL image in mode RGB, list of changes"""
    changes = []
    if image.format not in ("JPEG", "MPO") and getattr(image, "is_animated", False):
        changes.append("first page taken" if image.format == "TIFF" else "first frame of an animation taken")
        image.seek(0)
    turned = _orientation(image)                                  # before load: there Pillow turns a TIFF and forgets it
    deep = data[24:25] == b"\x10" if image.format == "PNG" else _bits(image) > 8
    image.load()
    if image.mode == "P" and image.palette is None:               # Pillow would make one up
        raise Unusable("image corrupt", "its palette is missing")
    mode, transparent = image.mode, "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La")
    if deep or mode[0] in "IF":
        changes.append(f"{'16' if image.format == 'PNG' else 'more than 8'} bits per channel reduced to 8")
    image = _upright(image, turned, changes) if upright else image
    if mode in ("I", "F") or mode.startswith("I;16"):
        return _in_strips(image, _to_8_bits(image)), changes
    if transparent:
        changes.append("alpha channel composited on white")
        return _in_strips(image, _on_white), changes
    if mode != "RGB":
        names = {"L": "grey made RGB", "1": "black and white made RGB", "P": "palette made RGB", "CMYK": "CMYK made RGB"}
        changes.append(names.get(mode, f"{mode} made RGB"))
        return _in_strips(image, lambda strip: strip.convert("RGB")), changes
    return image, changes


def _bits(image) -> int:
    """Bits per channel of a TIFF, as its header says."""
    bits = image.tag_v2.get(258, 8) if image.format == "TIFF" else 8
    return max(bits) if isinstance(bits, tuple) else bits


def _orientation(image, loaded: bool = False) -> int:
    """What its EXIF says, 1 (upright) to 8; 0: the EXIF cannot be read."""
    if image.format == "PNG" and "exif" not in image.info and not loaded:
        return 1                                                  # Pillow would decode it all to look behind the pixels
    try:
        found = image.getexif().get(0x0112, 1)
    except Exception:                                             # damaged EXIF is no reason to lose the image
        return 0
    return found if found in range(2, 9) else 1


def _upright(image, turned: int, changes: list[str]):
    from PIL import ImageOps

    left = _orientation(image, True)                                # a PNG may carry it behind its pixels
    try:
        image = ImageOps.exif_transpose(image) if left > 1 else image
    except Exception:
        turned = left = 0
    if max(turned, left) > 1:
        changes.append("turned upright as its EXIF says")
    elif not turned or not left:
        changes.append("unreadable EXIF ignored")
    return image


def _strips(image):
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _in_strips(image, change):
    """An image in mode RGB, changed some rows at a time, so that the result alone takes memory."""
    from PIL import Image

    out = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        out.paste(change(strip), (0, top))
    return out


def _on_white(strip):
    from PIL import Image

    strip = strip.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB")


def _to_8_bits(image):
    """Grey values of 16 bits, or floats in 0..1 or 0..255.   -> what makes a strip of them 8 bits"""
    from PIL import Image

    ends = [(pixels.min(), pixels.max()) for _, strip in _strips(image) for pixels in (np.asarray(strip),)]
    low, high = (float(f([end[i] for end in ends])) for i, f in enumerate((np.min, np.max)))
    top = (1 if high <= 1 else 255) if image.mode == "F" else 65535
    if not (low >= 0 and high <= top):                            # NaN fails this too
        raise Unusable("unknown range of values", f"{low} to {high} in mode {image.mode}")

    def change(strip):
        return Image.fromarray((np.asarray(strip).astype(np.float64) * (255 / top) + 0.5).astype(np.uint8)).convert("RGB")

    return change


def resize(image, size: int, how: str = "squash") -> np.ndarray:
    """PIL image or (H,W,3) uint8 array -> (size, size, 3) uint8, bicubic with antialiasing.

    how  "squash" the whole image into the square, as the paper's "resize"; "crop" its largest centred square; "within" the
         whole image in its own shape, (h,w,3), made smaller where one of its sides is longer than `size`
    """
    from PIL import Image

    if how not in ("squash", "crop", "within"):
        raise ValueError(f"how: expected squash, crop or within, got {how!r}")
    if not 1 <= size <= MAX_SIZE:
        raise ValueError(f"size: expected at least 1 and at most {MAX_SIZE}, got {size}")
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    width, height = image.size
    if how == "within":
        longest = max(width, height, size)
        shape = tuple(max(1, round(side * size / longest)) for side in image.size)
        return np.array(image if longest == size else image.resize(shape, Image.Resampling.BICUBIC))
    side = min(width, height)
    left, top = ((width - side) / 2, (height - side) / 2) if how == "crop" else (0, 0)
    box = (left, top, left + side, top + side) if how == "crop" else (0, 0, width, height)
    return np.array(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
