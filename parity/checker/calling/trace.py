"""See the arrays that an implementation makes, without editing it: its local variables line by line, and torch's operations.

A record is (where, array): where reads "file.py:12 name" for a variable, "file.py:12 op()" for an operation inside a line.
"""

import contextlib
import sys
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from parity.checker.calling.bridges import framework_of, to_numpy

ENTRIES, RECORDS = 1 << 21, 600                           # in all; what comes later is left out
VIEWS = {"unsqueeze", "permute", "view", "expand", "transpose", "t", "slice", "select", "alias", "_unsafe_view", "squeeze",
         "detach",
         "diagonal", "ones_like", "zeros_like", "clone", "_reshape_alias", "unbind", "split"}  # nothing new


@contextlib.contextmanager
def traced(files: list[str], framework: str, bounds: list[int] | None = None) -> Iterator[list[tuple[str, np.ndarray]]]:
    """Collect (where, float64 array) in the order made, while their code runs.

    files: whose lines are theirs.  An array that several records would repeat is there once, under its variable's name.
    bounds: [entries, records] at most.  A loop over the batch gives one record per turn.
    """
    book = Book(*(bounds or (ENTRIES, RECORDS)))
    with contextlib.ExitStack() as stack:
        if framework == "torch":
            stack.enter_context(operations(set(files), book))
        stack.enter_context(watched(files, book))
        yield book.records


class Book:
    """Records, bounded, each array once."""

    def __init__(self, entries, records):
        self.records: list[tuple[str, np.ndarray]] = []
        self.room, self.most = entries, records
        self.seen: dict[tuple, int] = {}
        self.named: set[int] = set()

    def add(self, where: str, x: Any, named: bool) -> None:
        x = concrete(x)
        if x is None or x.dtype.kind not in "fib" or x.size < 2 or x.size > self.room or len(self.records) >= self.most:
            return
        x = x.astype(np.float64)
        key = (x.shape, x.tobytes())
        at = self.seen.get(key)
        if at is None:
            self.seen[key] = len(self.records)
            self.records.append((where, x))
            self.room -= x.size
        elif named and at not in self.named:              # a variable's name says more than an operation's
            self.records[at] = (where, x)
        if named:
            self.named.add(self.seen[key])


class TracerBook:
    """Records of JAX's tracers while it traces: they are returned from the compiled function, which gives their values."""

    def __init__(self):
        self.records: list[tuple[str, Any]] = []
        self.seen: set[int] = set()

    def add(self, where: str, x: Any, named: bool) -> None:
        import jax.numpy as jnp

        for _ in range(8):                                # under vmap: the value of the whole batch
            if not hasattr(x, "batch_dim"):
                break
            axis, x = x.batch_dim, x.val
            if isinstance(axis, int) and axis:
                x = jnp.moveaxis(x, axis, 0)
        new = getattr(x, "ndim", 0) and x.size > 1 and id(x) not in self.seen and x.dtype.kind in "fib"
        if new and len(self.records) < RECORDS:
            self.seen.add(id(x))
            self.records.append((where, x))


@contextlib.contextmanager
def watched(files: list[str], book: Any) -> Iterator[None]:
    """Tell `book` about every new local variable of their lines."""
    old = sys.gettrace()
    sys.settrace(lines(set(files), book))
    try:
        yield
    finally:
        sys.settrace(old)


def concrete(x: Any) -> np.ndarray | None:
    """An array's values; None for what is no array or has none yet."""
    return to_numpy(x) if framework_of(x) is not None and getattr(x, "shape", None) else None


def lines(files: set[str], book: Book) -> Callable:
    """A function for sys.settrace: after each line of theirs, what is new among the local variables.

    What one function of theirs hands to another may have no name before: an argument, there.
    """

    def enter(frame, event, _):
        if frame.f_code.co_filename not in files:
            return None
        known = {name: mark(x) for name, x in frame.f_locals.items()}  # arguments are inputs
        last = frame.f_lineno
        short = Path(frame.f_code.co_filename).name
        if frame.f_back is not None and frame.f_back.f_code.co_filename in files:
            for name, x in frame.f_locals.items():
                if framework_of(x) is not None:
                    book.add(f"{short}:{frame.f_back.f_lineno} {name}", x, named=False)

        def step(frame, event, value):
            nonlocal last
            for name, x in frame.f_locals.items():
                if framework_of(x) is None or known.get(name) == (now := mark(x)):
                    continue
                known[name] = now
                book.add(f"{short}:{last} {name}", x, named=True)
            if event == "return" and framework_of(value) is not None:
                book.add(f"{short}:{last} {frame.f_code.co_name}", value, named=True)
            last = frame.f_lineno
            return step

        return step

    return enter


def mark(x: Any) -> tuple:
    """Changes when a variable is assigned, or its array written to in place."""
    if framework_of(x) == "torch":
        return id(x), getattr(x, "_version", 0)
    if framework_of(x) == "numpy" and isinstance(x, np.ndarray) and x.size <= 1 << 14:
        return id(x), hash(x.tobytes())
    return (id(x),)


def operations(files: set[str], book: Book):
    """A torch mode that records the result of each operation and the line of theirs that called it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    def place():
        frame = sys._getframe(2)
        while frame is not None and frame.f_code.co_filename not in files:
            frame = frame.f_back
        return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else ""

    class Record(TorchDispatchMode):
        _should_skip_dynamo = classmethod(lambda cls: False)  # else the first operation imports torch.compile: seconds

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            name = func.__name__.split(".")[0]
            if name not in VIEWS and (where := place()):
                for x in out if isinstance(out, tuple | list) else (out,):
                    book.add(f"{where} {name}()", x, named=False)
            return out

    return Record()


@contextlib.contextmanager
def peak_bytes(framework: str) -> Iterator[Callable[[], int | None]]:
    """Memory that arrays held at most while their code ran; the inputs are not counted.

    torch: the storages that operations made and nobody has let go of.  NumPy: tracemalloc.  Others: not measured, None.
    """
    if framework == "numpy":
        tracemalloc.start()
        tracemalloc.reset_peak()
        start = tracemalloc.get_traced_memory()[0]
        try:
            yield lambda: peak - start
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return
    if framework != "torch":
        yield lambda: None
        return
    from torch.utils._python_dispatch import TorchDispatchMode

    held: dict[int, int] = {}
    now = top = 0

    class Count(TorchDispatchMode):
        _should_skip_dynamo = classmethod(lambda cls: False)

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal now, top
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else (out,):
                if not hasattr(x, "untyped_storage"):
                    continue
                storage = x.untyped_storage()
                if id(storage) in held or storage.data_ptr() in inputs:
                    continue
                held[id(storage)] = size = storage.nbytes()
                now += size
                weakref.finalize(storage, release, id(storage))
            top = max(top, now)
            for x in args:
                if hasattr(x, "untyped_storage") and id(x.untyped_storage()) not in held:
                    inputs.add(x.untyped_storage().data_ptr())
            return out

    inputs: set[int] = set()

    def release(key):
        nonlocal now
        now -= held.pop(key, 0)

    with Count():
        yield lambda: top
