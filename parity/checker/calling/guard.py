"""A small process of ours between the checker and a stranger's code, so that nothing of that outlives the check.

    checker -- keeper -- (first) -- the stranger's process and all that it starts

The keeper runs none of their code.  It adopts what loses its parent (a daemon that forks twice), ends everything when the
stranger's process ends or the checker is gone, however that went, and then ends the way the stranger's process did.  Where
Linux allows it, their code has a process namespace (it sees and signals nothing outside) and a network namespace (it reaches
nobody); `first` is process 1 there, and when it ends the kernel ends the rest.  As an ordinary user that takes a user namespace
in which the user is still the same user.
"""

import contextlib
import ctypes
import os
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

NEWNS, NEWUSER, NEWPID, NEWNET = 0x00020000, 0x10000000, 0x20000000, 0x40000000
PDEATHSIG, SUBREAPER, NO_NEW_PRIVS = 1, 36, 38            # of prctl
REC_PRIVATE = 0x4000 | (1 << 18)                          # of mount


def keep(run: Callable[[], None], life: int, enclose: bool = True, close: tuple[int, ...] = ()) -> None:
    """Run `run` in a process below this one; returns there alone, when `run` has.

    life: a pipe that the checker holds open; its end is the checker's.  close: descriptors that only `run` may hold.
    """
    if sys.platform != "linux":
        run()
        return
    prctl(SUBREAPER, 1)
    flags = next((f for f in (NEWPID | NEWNET, NEWNET) if enclose and allowed(f)), 0)
    enter(flags)
    ended, tell = os.pipe()
    child = os.fork()
    if not child:
        prctl(PDEATHSIG, signal.SIGKILL)
        os.close(life)
        if flags & NEWPID:
            first(run, tell, close)
        os.setsid()                                       # its signals to its group reach nobody else
        run()
        return
    for fd in (*close, tell):
        os.close(fd)
    status = attend(child, life)
    sweep()
    if flags & NEWPID and status == 0:                    # process 1 cannot end by a signal: it writes how theirs ended
        status = struct.unpack("i", os.read(ended, 4) or bytes(4))[0]
    end_as(0 if status is None else status)


def first(run, tell, close) -> None:
    """Process 1 of a namespace: start theirs, adopt and bury until it ends.  Returns in theirs alone."""
    see_only_own_processes()
    loopback()
    child = os.fork()
    if not child:
        prctl(PDEATHSIG, signal.SIGKILL)
        os.close(tell)
        prctl(NO_NEW_PRIVS, 1)
        return
    for fd in close:
        os.close(fd)
    os.write(tell, struct.pack("i", attend(child) or 0))
    os._exit(0)


def attend(child: int, life: int | None = None) -> int | None:
    """Bury every child that ends.      -> the status of `child`; None when the other end of `life` is gone first"""
    wake, waker = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    while True:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return None
            if pid == child:
                return status
            if not pid:
                break
        ready, _, _ = select.select([wake, *([life] if life is not None else [])], [], [])
        if life in ready:
            return None
        with contextlib.suppress(BlockingIOError):
            os.read(wake, 4096)


def sweep() -> None:
    """End everything below this process, again and again until nothing is there."""
    for _ in range(500):
        found = descendants(os.getpid())
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not found:
            return
        time.sleep(0.002)


def end_as(status: int) -> None:
    """End this process the way another one did."""
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        number = os.WTERMSIG(status)
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1)


def descendants(pid: int) -> list[int]:
    """Every living process that `pid` started, directly or not; on Linux."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                parents[int(path.parent.name)] = int(parent)
    found: list[int] = []
    new = {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new}
        found += new
    return found


def allowed(flags: int) -> bool:
    """Whether this system lets us enter these namespaces: tried in a process that is thrown away."""
    child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(BaseException):
            enter(flags)
            code = 0
            if flags & NEWPID:
                inner = os.fork()
                if not inner:
                    with contextlib.suppress(BaseException):
                        see_only_own_processes()
                        os._exit(0)
                    os._exit(1)
                code = os.waitpid(inner, 0)[1]
        os._exit(1 if code else 0)
    return os.waitpid(child, 0)[1] == 0


def enter(flags: int) -> None:
    """unshare(2); an ordinary user needs a user namespace, root does without (in one it would lose other users' files)."""
    if not flags:
        return
    uid, gid = os.geteuid(), os.getegid()
    call("unshare", flags | (NEWUSER if uid else 0))
    if uid:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            Path(f"/proc/self/{name}").write_text(text)


def see_only_own_processes() -> None:
    """/proc of this process namespace alone, so that os.getpid() and /proc agree."""
    call("unshare", NEWNS)
    call("mount", None, b"/", None, REC_PRIVATE, None)
    call("mount", b"proc", b"/proc", b"proc", 0, None)


def loopback() -> None:
    """localhost in the new network namespace: some code talks to itself."""
    import fcntl
    import socket

    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP


def prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def call(name: str, *arguments) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
