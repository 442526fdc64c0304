"""What a file is that is not a picture we read, by its first bytes: a person can act on a name, not on "not an image"."""

from .load_report import Unusable

SAVE = "save it as JPEG or PNG"
BRANDS = {                                                        # of an ISO media file, bytes 8 to 12
    b"heic": "HEIC", b"heix": "HEIC", b"heim": "HEIC", b"heis": "HEIC", b"hevc": "HEIC", b"hevx": "HEIC", b"mif1": "HEIC",
    b"msf1": "HEIC", b"avif": "AVIF", b"avis": "AVIF", b"crx ": "Canon raw",
}
PICTURES = {b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000", b"\xff\x4f\xff\x51": "JPEG 2000", b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
            b"\xff\x0a": "JPEG XL", b"8BPS": "Photoshop", b"\0\0\1\0": "Windows icon", b"<svg": "SVG", b"qoif": "QOI",
            b"DDS ": "DDS", b"\x76\x2f\x31\x01": "OpenEXR", b"#?RADIANCE": "Radiance HDR", b"gimp xcf": "GIMP"}
READ = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF87a": "GIF", b"GIF89a": "GIF", b"RIFF": "WebP",
        b"II*\0": "TIFF", b"MM\0*": "TIFF"}
OTHERS = {b"version https://git-lfs": "a Git LFS pointer; git lfs pull fetches the picture", b"%!PS": "PostScript",
          b"%PDF": "PDF", b"PK\3\4": "a zip archive", b"\x1f\x8b": "a gzip archive", b"<!doctype html": "an HTML page",
          b"<html": "an HTML page", b"<?xml": "XML"}


def unreadable(data: bytes, formats: tuple[str, ...]) -> Unusable:
    """The error for a file that no decoder opens, naming what it is where its first bytes tell."""
    if data[4:8] == b"ftyp":
        box = data[8:max(12, min(int.from_bytes(data[:4]), 128))]
        names = [BRANDS[box[at:at + 4]] for at in range(0, len(box), 4) if box[at:at + 4] in BRANDS]
        if "AVIF" in names:                                       # its first brand may be that of HEIC's family
            return Unusable("image corrupt", "AVIF") if "AVIF" in formats else Unusable("AVIF, not read", "needs Pillow 11.3")
        return Unusable(f"{names[0]}, not read", SAVE) if names else Unusable("not an image", "a video")
    for magic, name in READ.items():
        if data.startswith(magic) and (magic != b"RIFF" or data[8:12] == b"WEBP"):
            return Unusable("image corrupt", f"{name}, its header is damaged")
    start = data[:1000].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    start = start[start.find(b"<svg"):] if start.startswith(b"<?xml") and b"<svg" in start else start
    for magic, name in (PICTURES | OTHERS).items():
        if data.startswith(magic) or (magic[:1] == b"<" and start.startswith(magic)):
            return Unusable(f"{name}, not read", SAVE) if magic in PICTURES else Unusable("not an image", name)
    return Unusable("not an image", f"expected one of {', '.join(formats)}" if data else "empty file")
