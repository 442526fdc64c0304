"""A process seen from outside: its memory, its children, its end, what it prints."""

import contextlib
import os
import sys
import time
from pathlib import Path


def wait(pid, process, seconds):
    """The exit status, negative for a signal; None when it has not ended by then."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process is not None:
            if process.poll() is not None:
                return process.returncode
        else:
            try:
                done, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                return 0
            if done:
                return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def drain(fd, tail):
    """Read what they print, for ever, and keep the end of it."""
    with os.fdopen(fd, "rb", 0) as pipe:
        while part := pipe.read(4096):
            tail.append(part)


def can_fork() -> bool:
    """Whether a fork of this process can compute: no GPU in use, no framework whose threads would be missing in the child."""
    if not hasattr(os, "fork") or sys.platform == "darwin" or {"jax", "tensorflow", "cupy"} & set(sys.modules):
        return False
    torch = sys.modules.get("torch")
    return torch is None or not (torch.cuda.is_available() and torch.cuda.is_initialized())


def descendants(pid) -> list[int]:
    """Every process that `pid` started, directly or not; on Linux."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found: list[int] = []
    new = {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new}
        found += new
    return found


def memory_of(pid) -> int:
    """Resident bytes of a process and its children; 0 where the system does not say."""
    total = 0
    with contextlib.suppress(OSError):
        page = os.sysconf("SC_PAGE_SIZE")
        children = Path(f"/proc/{pid}/task/{pid}/children")
        pids = [pid, *(map(int, children.read_text().split()) if children.exists() else ())]
        for p in pids:
            with contextlib.suppress(OSError, IndexError, ValueError):
                total += int(Path(f"/proc/{p}/statm").read_text().split()[1]) * page
    return total
