"""Any image file, friendly or hostile, to a square of uint8 RGB.  Needs Pillow (the extra "run")."""

import io
import os
import warnings
from pathlib import Path

import numpy as np

from .load_report import Unusable

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # none that starts another program, as EPS does
MAX_PIXELS = 64_000_000
MAX_BYTES = 256 * 2**20


def load_image(path: str | os.PathLike, size: int, how: str = "squash") -> np.ndarray:
    """(size, size, 3) uint8 of one file.   ValueError with the reason where it cannot be used"""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                       # Pillow's hints about bombs and odd metadata: checked here
            return read_image(Path(path), size, how)[0]
    except Unusable as error:
        raise ValueError(f"{path}: {error}") from error


def read_image(source: Path | bytes, size: int, how: str = "squash",
               max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, list[str]]:
    """Decode completely, convert to RGB, resize.   -> (size, size, 3) uint8 and what had to be converted

    Raises Unusable for anything that is missing, too large, truncated or not one of FORMATS. The size is checked in the
    header, before any pixel is decoded. Of animations the first frame is taken.
    """
    from PIL import Image

    data = source if isinstance(source, bytes) else _bytes(source)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise Unusable("image too large", f"{image.width} x {image.height} pixels, at most {max_pixels}")
            image, changes = to_rgb(image, data)
            return resize(image, size, how), changes
    except Unusable:
        raise
    except Image.DecompressionBombError as error:
        raise Unusable("image too large", str(error)) from error
    except Image.UnidentifiedImageError as error:
        raise Unusable("not an image", f"expected one of {', '.join(FORMATS)}") from error
    except Exception as error:                                    # decoders raise nearly anything on damaged files
        reason = "image truncated" if "truncated" in str(error).lower() else "image corrupt"
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


def to_rgb(image, data: bytes):
    """Turn upright and convert to RGB.   -> PIL image in mode RGB, list of changes"""
    from PIL import Image

    changes = []
    if image.format in ("GIF", "PNG", "WEBP") and getattr(image, "is_animated", False):
        changes.append("first frame of an animation taken")
        image.seek(0)
    image.load()
    mode, transparent = image.mode, "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La")
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:25] == b"\x10":
        changes.append("16 bits per channel reduced to 8")
    image = _upright(image, changes)
    if mode in ("I", "F") or mode.startswith("I;16"):
        if not changes or "16 bits" not in changes[-1]:
            changes.append("more than 8 bits per channel reduced to 8")
        return Image.fromarray(_to_8_bits(np.asarray(image), mode)).convert("RGB"), changes
    if transparent:
        changes.append("alpha channel composited on white")
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"), changes
    if mode != "RGB":
        names = {"L": "grey made RGB", "1": "black and white made RGB", "P": "palette made RGB", "CMYK": "CMYK made RGB"}
        changes.append(names.get(mode, f"{mode} made RGB"))
        image = image.convert("RGB")
    return image, changes


def _upright(image, changes: list[str]):
    from PIL import ImageOps

    try:
        turned = image.getexif().get(0x0112, 1) not in (0, 1)
        image = ImageOps.exif_transpose(image) if turned else image
    except Exception:                                             # damaged EXIF is no reason to lose the image
        changes.append("unreadable EXIF ignored")
    else:
        if turned:
            changes.append("turned upright as its EXIF says")
    return image


def _to_8_bits(pixels: np.ndarray, mode: str) -> np.ndarray:
    """Grey values of 16 bits, or floats in 0..1 or 0..255.   -> uint8"""
    pixels = pixels.astype(np.float64)
    low, high = (pixels.min(), pixels.max()) if pixels.size else (0.0, 0.0)
    top = (1 if high <= 1 else 255) if mode == "F" else 65535
    if not (low >= 0 and high <= top):                            # NaN fails this too
        raise Unusable("unknown range of values", f"{low} to {high} in mode {mode}")
    return (pixels * (255 / top) + 0.5).astype(np.uint8)


def resize(image, size: int, how: str = "squash") -> np.ndarray:
    """PIL image or (H,W,3) uint8 array -> (size, size, 3) uint8, bicubic with antialiasing.

    how  "squash" the whole image into the square, as the paper's "resize"; "crop" its largest centred square
    """
    from PIL import Image

    if how not in ("squash", "crop"):
        raise ValueError(f"how: expected squash or crop, got {how!r}")
    if size < 1:
        raise ValueError(f"size: expected at least 1, got {size}")
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    width, height = image.size
    side = min(width, height)
    left, top = ((width - side) / 2, (height - side) / 2) if how == "crop" else (0, 0)
    box = (left, top, left + side, top + side) if how == "crop" else (0, 0, width, height)
    return np.array(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
