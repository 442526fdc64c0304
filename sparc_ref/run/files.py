"""Writing that loses nothing: a file is whole or not there, no link is written through, an error names file and remedy."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space", errno.EDQUOT: "the quota is used up: free some space",
    errno.EIO: "the disk does not answer: check it, or write to another one",
    errno.EROFS: "the disk is read-only: write to another one", errno.EACCES: "you have no access there: choose another place",
    errno.EPERM: "you have no access there: choose another place", errno.EMFILE: "too many open files: raise ulimit -n",
}


class WriteFailed(OSError):
    """A file could not be written; the message names it, the reason and the remedy."""


@contextmanager
def writing(path: Path, then: str = "") -> Iterator[None]:
    """Turn an OSError inside into WriteFailed that names the file and what to do.      then: what follows the remedy"""
    try:
        yield
    except WriteFailed:
        raise
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "mend that")
        reason = error.strerror or str(error)
        raise WriteFailed(f"{error.filename or path}: not written: {reason}; {remedy}{then or ', then try again'}") from error


def put(path: Path, content: bytes) -> None:
    """Write a file that must not be there yet; a link of that name is not followed."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW, 0o666)
    try:
        write_all(handle, content)
    finally:
        os.close(handle)


def write_all(handle: int, content: bytes) -> None:
    """All of it, or OSError."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(handle, rest[: 1 << 30]):]


def write_whole(path: Path, content: bytes | str) -> None:
    """Replace a file, or make it: beside it first, flushed, then renamed.  What was there stays until then.   WriteFailed"""
    part = path.with_name(f".{path.name}.part")
    with writing(path):
        try:
            part.unlink(missing_ok=True)                  # of a killed process
            put(part, content.encode() if isinstance(content, str) else content)
            flush(part)
            os.replace(part, path)
        except BaseException:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        flush(path.parent)


def write_output(path: Path, content: str) -> None:
    """Write where the user said: a pipe or device as it is, a file (through links) as a whole."""
    if path.exists() and not path.is_file():
        with writing(path):
            path.write_text(content, encoding="utf-8")
    else:
        write_whole(path.resolve(), content)


def check_output(option: str, path: Path | None) -> None:
    """ValueError before any work where a file could not be written in the end."""
    if path is None or (path.exists() and not path.is_file() and not path.is_dir()):
        return
    if path.is_dir():
        raise ValueError(f"{option}: expected a file, got the folder {path}")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise ValueError(f"{option} {path}: there is no folder {folder}; make it first")
    trial = folder / f".{path.name[:100]}.{os.getpid()}.try"
    try:
        put(trial, b"")
        trial.unlink()
    except OSError as error:
        raise ValueError(f"{option} {path}: {folder} cannot be written to ({error.strerror}); choose another place") from error


def read_bytes(path: Path) -> bytes:
    """A file's content; an OSError names the file, which read() does not."""
    try:
        return path.read_bytes()
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "mend that")
        raise OSError(f"{path}: cannot be read: {error.strerror}; {remedy}") from error


def flush(path: Path) -> None:
    """Force a file or directory to disk."""
    if os.name == "nt" and path.is_dir():                 # Windows cannot open a directory
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def kind(path: Path) -> str:
    """What is there, links not followed: "nothing", "file", "folder", "link" or "other"."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "nothing"
    return {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}.get(stat.S_IFMT(mode), "other")
