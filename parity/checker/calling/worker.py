"""A stranger's code in a process of its own: started once, asked many times, killed when it takes too long or too much memory.

    with Worker({"file": "my_loss.py", "name": "loss"}) as worker:
        worker.ask({"do": "call", ...}, {"v": v, "t": t, "mask": mask, "theta": theta})      -> reply, arrays

Both ends speak over two pipes that their prints cannot reach: file descriptors 1 and 2 of the process lead to a reader that
keeps the last lines and throws the rest away.  No pickle: JSON and safetensors alone.  Every reply starts with a word that was
drawn for this process and told to our loop before their code was loaded: what else is written to the pipe is no reply.  (It
keeps their code from speaking for the checker by accident or by a simple trick; a process can always lie about its own
numbers.)  Strings come out with control characters made visible.  A keeper (`guard`) stands between and ends what they start.
What cannot be imported by name (a lambda, a notebook's cell) is forked, and where that is not safe it runs in this process,
without limits.
"""

import contextlib
import io
import json
import math
import os
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from parity.checker.calling import guard
from parity.checker.calling.packing import harmless, pack, unpack, visible
from parity.checker.calling.process import (
    can_fork,
    carrying,
    descendants,
    drain,
    innermost,
    memory_of,
    namespace,
    status_of,
    wait,
)

INSIDE = "PARITY_INSIDE"                                  # set where their code runs: no check inside a check
REPLY = 1 << 28                                           # bytes of a reply; more is an error
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1", "TF_CPP_MIN_LOG_LEVEL": "3",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1",
}
PASSED_ON = {                                             # of this process's environment; the rest may hold secrets
    "PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "HOME", "LANG",
    "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "XDG_CACHE_HOME",
}
SLACK = 256 << 20                                         # stacks of threads, beside what memory_limit allows


class Stopped(Exception):
    """The process is gone: it crashed, or was stopped.  kind: "crash" | "exit" | "time" | "memory" | "budget"."""

    def __init__(self, kind: str, words: str):
        super().__init__(words)
        self.kind = kind


class Worker:
    """One implementation in one process.      target: {"module" | "file", "name"} or {"object": a callable}

    time_limit: seconds for one request (twice that for loading).  memory_limit: bytes beyond what it holds once loaded.
    budget: seconds for all requests.  how: what runs it, "process" | "fork" | "here".  After a stop the next request starts
    another process, `restarts` times at most.  env: names of further variables of the environment that it may see.  network:
    leave it the network; else it has none where the system allows that, and `network` says whether it has.
    """

    def __init__(self, target: dict[str, Any], time_limit: float = 30.0, memory_limit: int = 4 << 30, device: str = "cpu",
                 restarts: int = 12, budget: float = math.inf, env: tuple[str, ...] = (), network: bool = False):
        self.target, self.time_limit, self.memory_limit, self.device = target, time_limit, memory_limit, device
        self.env, self.enclose, self.network = env, not network and device == "cpu", True
        self.main = 0                                     # the process that runs their code
        self.restarts, self.asked, self.base = restarts, 0, 0
        self.budget, self.end = budget, time.monotonic() + budget
        self.tail: deque[bytes] = deque(maxlen=200)
        self.pid: int | None = None
        self.process: subprocess.Popen | None = None
        self.candidates: list[str] = []
        self.here: dict[str, Any] | None = None
        self.loaded = False
        self.how = "process" if "object" not in target else "fork" if can_fork() else "here"

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def ask(self, request: dict, arrays: dict[str, np.ndarray] | None = None) -> tuple[dict, dict[str, np.ndarray]]:
        """One request, one reply; its "error" says what their code raised.  Raises Stopped when the process is gone."""
        self.asked += 1
        if time.monotonic() > self.end:
            self.close()
            raise Stopped("budget", f"the check took longer than {self.budget:g} s in all; --budget allows more")
        if self.how == "here":
            return self.ask_here(request, arrays or {})
        if self.pid is None or not self.loaded:
            self.start()
        return self.exchange(request, arrays or {}, self.time_limit)

    def ask_here(self, request, arrays):
        from parity.checker.calling import inside

        if self.here is None:
            self.here = inside.state_of(self.target["object"], self.device)
        try:
            told = Visible(sys.stderr)
            with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told), random_state():
                reply, sent = inside.answer(self.here, request, arrays)
                return harmless(json.loads(json.dumps(reply, default=repr))), sent
        except (Exception, SystemExit) as error:
            return harmless({"error": inside.told(error, self.here)}), {}

    def launch(self) -> None:
        """Start the process and tell it what to load, without waiting.  Raises Stopped after too many restarts."""
        if self.restarts < 0:
            raise Stopped("crash", "it ended too often to be started again")
        self.restarts -= 1
        mine, theirs, printed, life = os.pipe(), os.pipe(), os.pipe(), os.pipe()  # requests, replies, ...
        self.mark, self.token = secrets.token_hex(8), secrets.token_hex(16)
        ends = (mine[0], theirs[1], life[0])
        if self.how == "fork":
            self.fork(mine, theirs, printed, life)
        else:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "parity.checker.calling.worker", *map(str, ends), self.device,
                 "closed" if self.enclose else "open"],
                pass_fds=ends, stdin=subprocess.DEVNULL, stdout=printed[1], stderr=printed[1],
                start_new_session=True, env=self.environment(),
            )
            self.pid = self.process.pid
        for fd in (*ends, printed[1]):
            os.close(fd)
        self.writer, self.reader, self.life, self.buffer = mine[1], theirs[0], life[1], bytearray()
        os.set_blocking(self.reader, False)
        with contextlib.suppress(BrokenPipeError):
            os.write(self.writer, self.token.encode() + b"\n")
        self.tail.clear()
        threading.Thread(target=drain, args=(printed[0], self.tail), daemon=True).start()
        self.base, self.loaded = 0, False
        self.load_error: dict | None = None

    def start(self) -> None:
        """Load the target.  Raises Stopped; a failed import is in `load_error`."""
        if self.pid is None:
            self.launch()
        self.loaded = True
        if "object" not in self.target:
            reply, _ = self.exchange({"do": "load", **self.target}, {}, max(60.0, 2 * self.time_limit))
            self.load_error, self.candidates = reply.get("error"), reply.get("candidates", [])
        else:
            self.exchange({"do": "ready"}, {}, 60.0)
        assert self.pid is not None
        self.main = innermost(self.pid)
        self.network = not namespace(self.main, "net") or namespace(self.main, "net") == namespace("self", "net")
        self.base = max(memory_of(self.pid), status_of(self.main, "VmHWM"))
        self.limit_memory()

    def reload(self, target: dict[str, Any]) -> None:
        """Another implementation in the same process: what it imported stays imported."""
        self.target, self.candidates, self.load_error = target, [], None
        if self.pid is not None:
            self.start()

    def limit_memory(self):
        """A far too large allocation then fails where it is asked for, with their line in the traceback."""
        if sys.platform != "linux" or self.device != "cpu" or not self.memory_limit:
            return
        import resource

        with contextlib.suppress(OSError, ValueError, IndexError):
            for kind, line, more in ((resource.RLIMIT_DATA, "VmData", SLACK), (resource.RLIMIT_AS, "VmSize", 8 << 30)):
                most = status_of(self.main, line) + self.memory_limit + more
                resource.prlimit(self.main, kind, (most, most))

    def environment(self) -> dict[str, str]:
        """What their code sees of the environment: a short list, and `mark`, by which its processes are known."""
        kept = {k: x for k, x in os.environ.items() if k in PASSED_ON or k in self.env or k.startswith("LC_")}
        env = kept | ENVIRONMENT | {INSIDE: self.mark}
        if "site-packages" not in (root := str(Path(__file__).parents[3])):
            env["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        if self.device == "cpu":
            env |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        return env

    def fork(self, mine, theirs, printed, life):
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            self.pid = pid
            return
        status = 1
        try:                                              # the child: never returns
            os.setsid()
            null = os.open(os.devnull, os.O_RDONLY)
            for fd, to in ((null, 0), (printed[1], 1), (printed[1], 2)):
                os.dup2(fd, to)
            for fd in (mine[1], theirs[0], printed[0], life[1]):
                os.close(fd)
            sys.settrace(None)
            env = self.environment()
            os.environ.clear()
            os.environ.update(env)
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(1)
            run_inside(mine[0], theirs[1], life[0], self.device, self.enclose, self.target["object"])
            status = 0
        finally:
            os._exit(status)

    def exchange(self, request, arrays, limit):
        body = pack(arrays)
        message = json.dumps(request | {"bytes": len(body)}).encode() + b"\n" + body
        deadline = time.monotonic() + limit
        try:
            self.send(message, deadline)
            word, _, line = self.receive(None, deadline).partition(b" ")
            if not secrets.compare_digest(word, self.token.encode()):
                self.stop_with("crash", "its code wrote to the checker's own pipe, which it never opened")
            reply = harmless(json.loads(line))
            sent = unpack(self.receive(int(reply.get("bytes", 0)), deadline))
            self.look_at_peak()
        except (BrokenPipeError, EOFError):
            self.stop_with(*self.how_it_ended())
        except (ValueError, TypeError, KeyError) as error:
            self.stop_with("crash", f"it answered nonsense ({error})")
        except TimeoutError:
            self.stop_with("time", f"it took longer than {limit:g} s")
        except MemoryError as error:
            self.stop_with("memory", str(error))
        return reply, sent

    def send(self, message, deadline):
        os.set_blocking(self.writer, False)
        view = memoryview(message)
        while view:
            self.watch(deadline, None, self.writer)
            with contextlib.suppress(BlockingIOError):
                view = view[os.write(self.writer, view[: 1 << 16]) :]

    def receive(self, count, deadline):
        """`count` bytes, or a line where it is None.  Raises EOFError, TimeoutError, MemoryError."""
        if count is not None and not 0 <= count <= REPLY:
            raise ValueError(f"{count} bytes")
        while True:
            end = self.buffer.find(b"\n") + 1 if count is None else count if len(self.buffer) >= count else 0
            if end or count == 0:
                part, self.buffer = bytes(self.buffer[:end]), self.buffer[end:]
                return part
            if len(self.buffer) > REPLY:
                raise ValueError("no end of a line")
            self.watch(deadline, self.reader, None)
            try:
                part = os.read(self.reader, 1 << 20)
            except BlockingIOError:
                continue
            if not part:
                raise EOFError
            self.buffer += part

    def watch(self, deadline, reader, writer):
        """Wait until a pipe is ready; look at the clock and at the memory in the meantime."""
        while True:
            ready = select.select([reader] if reader is not None else [], [writer] if writer is not None else [], [], 0.05)
            if ready[0] or ready[1]:
                return
            if time.monotonic() > deadline:
                raise TimeoutError
            if self.memory_limit and self.base:
                self.too_much(memory_of(self.pid))

    def look_at_peak(self):
        """What it took and let go of again between two looks."""
        if self.memory_limit and self.base and self.device == "cpu":
            self.too_much(status_of(self.main, "VmHWM"))

    def too_much(self, held):
        if (used := held - self.base) > self.memory_limit:
            raise MemoryError(f"it took {used / 2**30:.1f} GiB, more than the limit of {self.memory_limit / 2**30:.1f} GiB")

    def how_it_ended(self):
        status = wait(self.pid, self.process, 2.0)
        if status is None:
            return "crash", "it closed its pipes"
        if status < 0:
            name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
            words = {"SIGSEGV": "segmentation fault", "SIGKILL": "killed from outside, out of memory as a rule",
                     "SIGABRT": "abort"}
            return "crash", f"it crashed: {name}" + (f" ({words[name]})" if name in words else "")
        return "exit", f"it ended its own process with status {status}"

    def stop_with(self, kind, words):
        last = self.printed()[-400:].strip()
        self.close()
        raise Stopped(kind, words + (f"; its last words: {last}" if last and kind == "crash" else ""))

    def printed(self) -> str:
        """The end of what it wrote to standard output and error."""
        time.sleep(0.02)
        return visible(b"".join(self.tail).decode(errors="replace"))

    def close(self) -> None:
        """End the process and all that it started, wherever that went."""
        if self.pid is None:
            return
        pid, self.pid = self.pid, None
        for _ in range(100):                              # the keeper last: it adopts what loses its parent meanwhile
            if not (found := {*descendants(pid), *carrying(f"{INSIDE}={self.mark}")} - {pid}):
                break
            for child in found:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(child, signal.SIGKILL)
            time.sleep(0.002)
        for end in (os.kill, os.killpg):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                end(pid, signal.SIGKILL)
        wait(pid, self.process, 5.0)
        for fd in (self.writer, self.reader, self.life):
            os.close(fd)
        self.process = None


class Visible(io.TextIOBase):
    """What they print in this process, with control characters made visible."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(visible(text))
        return len(text)


@contextlib.contextmanager
def random_state():
    """What runs in this process leaves its random numbers where they were."""
    import random

    torch = sys.modules.get("torch")
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state() if torch else None  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])                      # noqa: NPY002
        if torch:
            torch.set_rng_state(kept[2])


def run_inside(reader, writer, life, device, enclose, target=None):
    """The process's own side: under a keeper, with the pipes out of the way, serve."""
    def run():
        from parity.checker.calling import inside

        with os.fdopen(away(reader), "rb") as requests, os.fdopen(away(writer), "wb") as replies:
            inside.serve(requests, replies, target, device)

    guard.keep(run, life, enclose, (reader, writer))


def away(fd: int) -> int:
    """A pipe at a number that nobody guesses, which no program that they start inherits."""
    import fcntl

    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64 + secrets.randbelow(128))
    os.close(fd)
    return moved


if __name__ == "__main__":
    run_inside(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5] == "closed")
