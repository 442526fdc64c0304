"""Names of pictures as people write them: which texts are names, and which names are the same."""

import unicodedata

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".heic",
            ".heif", ".jp2", ".jxl", ".jpe", ".jfif")


def is_picture(name: str) -> bool:
    """Whether a text is written like the name of a picture."""
    return name.lower().endswith(SUFFIXES)


def is_url(name: str) -> bool:
    return name.lower().startswith(("http://", "https://", "ftp://", "s3://", "gs://"))


def valid(text: str) -> bool:
    """No lone surrogates: they stand for bytes that are not UTF-8, or come from broken JSON escapes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def nfc(text: str) -> str:
    """Composed Unicode: macOS writes e and an accent where others write one letter."""
    return unicodedata.normalize("NFC", text)


def fold(text: str) -> str:
    """Equal for two spellings that differ in Unicode form or case."""
    return nfc(nfc(text).casefold())


def parts(name: str) -> list[str]:
    """The folders and the file of a name, folded."""
    return [part for part in fold(name.replace("\\", "/")).split("/") if part not in ("", ".")]


def same_name(name: str) -> str:
    """Equal for two spellings of one name: slashes, Unicode form, case."""
    return "/".join(parts(name))
