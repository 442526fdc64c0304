"""A process seen from outside: its memory, its children, its end, what it prints."""

import contextlib
import os
import sys
import time
from pathlib import Path

from parity.checker.calling.guard import descendants


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


def children(pid: int) -> list[int]:
    """Processes that `pid` started itself, oldest first; on Linux."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError, ValueError):
            found += map(int, path.read_text().split())
    return found


def innermost(keeper: int) -> int:
    """The process that runs their code, below its keeper and process 1 of its namespace."""
    pid = keeper
    for _ in range(2):
        below = children(pid)
        if not below or (pid != keeper and namespace(pid, "pid") == namespace(keeper, "pid")):
            break
        pid = below[0]
    return pid


def namespace(pid: int | str, kind: str) -> str:
    """Which namespace of a kind ("pid", "net") a process is in; "" where the system does not say."""
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:
        return ""


def memory_of(pid: int) -> int:
    """Resident bytes of a process and of all that it started; 0 where the system does not say."""
    total, new = 0, [pid]
    page = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
    while new:
        for p in new:
            with contextlib.suppress(OSError, IndexError, ValueError):
                total += int(Path(f"/proc/{p}/statm").read_text().split()[1]) * page
        new = [child for p in new for child in children(p)]
    return total


def status_of(pid: int, name: str) -> int:
    """A line of /proc/PID/status in bytes: VmHWM, most that was resident at once; VmData, private and writable."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) << 10
    return 0


def carrying(mark: str) -> list[int]:
    """Processes whose environment holds `mark`: also those that left their session, their group and their parents."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


__all__ = ["can_fork", "carrying", "children", "descendants", "drain", "innermost", "memory_of", "namespace", "status_of",
           "wait"]
