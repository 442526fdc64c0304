"""Where arrays live and what the array API standard lacks. The one file that may name numpy or cupy."""

import ctypes
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any

import array_api_compat as aac
import numpy as np

Array = Any  # anything with an array API namespace: NumPy, CuPy, torch, array_api_strict

FLOATS = ("float16", "bfloat16", "float32", "float64")
BEYOND = {"float16": 65520.0, "bfloat16": 2.0**128 - 2.0**119, "float32": 2.0**128 - 2.0**103}  # what rounds to infinity

NO_GPU = """{what}
To run on a GPU you need an NVIDIA driver and the CuPy that matches it; in a clone of sparc_ref:
    pip install '.[run,cuda13]'      driver 580 or newer (CUDA 13)
    pip install '.[run,cuda12]'      driver 525 or newer (CUDA 12)
Then `nvidia-smi` and `python -c "import cupy; cupy.cuda.runtime.getDeviceCount()"` should both answer.
Without a GPU, leave the device at cpu."""


def get_device(name: str) -> str:
    """Check that a device can be used: "cpu" or "cuda".  Returns its name; raises ValueError that says what is missing."""
    if name == "cpu":
        return name
    if name != "cuda":
        raise ValueError(f'device: expected "cpu" or "cuda", got {name!r}')
    try:
        import cupy
    except ImportError as error:
        raise ValueError(NO_GPU.format(what=f"device cuda: CuPy cannot be imported ({error}).")) from None
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise ValueError(NO_GPU.format(what=f"device cuda: CuPy is installed, but the driver says: {error}.")) from None
    if count == 0:
        raise ValueError(NO_GPU.format(what="device cuda: CuPy is installed, but there is no GPU here."))
    return name


def to_device(x: Any, device: str) -> Any:
    """Move a NumPy array, or a dict or tuple of them, to "cpu" or "cuda"."""
    if isinstance(x, dict):
        return {key: to_device(value, device) for key, value in x.items()}
    if isinstance(x, tuple):
        return tuple(to_device(value, device) for value in x)
    if device == "cpu":
        return x
    import cupy

    return cupy.asarray(x)


def to_numpy(x: Array) -> np.ndarray:
    """Copy any array to NumPy, whatever device it is on."""
    if aac.is_cupy_array(x):
        return x.get()
    if aac.is_torch_array(x):
        return x.detach().cpu().numpy()
    if aac.is_numpy_array(x) or np.isscalar(x):
        return np.asarray(x)
    xp = aac.array_namespace(x)
    cpu = getattr(xp, "Device", None)  # array_api_strict
    return np.asarray(x if cpu is None else aac.to_device(x, cpu("CPU_DEVICE")))


def like(x: np.ndarray, other: Array, dtype: Any = None) -> Array:
    """A host array as an array of `other`'s kind, on its device, in `dtype` (None: other's)."""
    xp = aac.array_namespace(other)
    return xp.asarray(x, dtype=dtype or other.dtype, device=aac.device(other))


def check_arrays(**inputs: Any) -> None:
    """ValueError that names the first input that is no plain array, or one of another kind or on another device than the first.

    NumPy's matrices and masked arrays are refused: their products and sums mean something else.
    """
    first, kind = "", ""
    for name, x in inputs.items():
        if not aac.is_array_api_obj(x):
            raise ValueError(f"{name}: expected an array, got {type(x).__name__}")
        if isinstance(x, np.ma.MaskedArray):
            raise ValueError(f"{name}: expected a plain array, got NumPy's MaskedArray; its .data, or .filled(), is one")
        here = array_kind(x)
        if first and here != kind:
            raise ValueError(f"{name}: expected {kind}, as {first} is, got {here}")
        first, kind = first or name, kind or here


def array_kind(x: Array) -> str:
    """"an array of numpy", "an array of torch on cuda:0", ... in words."""
    if aac.is_numpy_array(x):                             # a subclass of NumPy's too
        return "an array of numpy"
    package = type(x).__module__.partition(".")[0]
    package = "jax" if package == "jaxlib" else package
    return f"an array of {package} on {aac.device(x)}"


def dtype_name(x: Any) -> str:
    """"float32", "bfloat16", ... of an array or a dtype, whatever kind it is."""
    dtype = getattr(x, "dtype", x)
    return getattr(dtype, "name", None) or str(dtype).rpartition(".")[2]


def in_one_dtype(**inputs: Array) -> tuple[tuple[Array, ...], tuple[Callable, ...]]:
    """The inputs in the widest dtype among them, at least float32, and for each the way back of its gradient to its own.

    float16, bfloat16 (torch's and ml_dtypes'), float32, float64; ValueError names an input of another dtype.
    """
    kinds = {name: dtype_name(x) for name, x in inputs.items()}
    if wrong := next((name for name, kind in kinds.items() if kind not in FLOATS), None):
        raise ValueError(f"{wrong}: expected {', '.join(FLOATS)}, got {kinds[wrong]}")
    xp = aac.array_namespace(*inputs.values())
    wide = xp.float64 if "float64" in kinds.values() else xp.float32
    return (tuple(xp.astype(x, wide, copy=False) for x in inputs.values()),
            tuple(partial(narrow, dtype=x.dtype, name=name) for name, x in inputs.items()))


def narrow(dy: Array, dtype: Any, name: str) -> Array:
    """A gradient in its input's dtype; ArithmeticError where it does not fit, instead of an infinity that nobody announced."""
    if dy.dtype == dtype:
        return dy
    xp = aac.array_namespace(dy)
    kind = dtype_name(dtype)
    largest = float(xp.max(xp.abs(dy)))
    if largest >= BEYOND.get(kind, math.inf):
        raise ArithmeticError(f"gradient of {name}: up to {largest:.3g}, it left the range of {kind}: call back() with a "
                              f"smaller dloss, or pass {name} in float32")
    return xp.astype(dy, dtype)


def scatter_add(ids: Array, rows: Array, count: int) -> Array:
    """Sum rows that share an id.      ids (N,) int, rows (N,C) -> (count,C), row i = sum of rows where ids == i"""
    if aac.is_numpy_array(rows):
        order = np.argsort(ids, kind="stable")
        out = np.zeros((count, rows.shape[1]), rows.dtype)
        present, starts = np.unique(ids[order], return_index=True)
        if len(present):
            out[present] = np.add.reduceat(rows[order], starts, axis=0)
        return out
    if aac.is_torch_array(rows):
        return rows.new_zeros((count, rows.shape[1])).index_add_(0, ids, rows)
    if aac.is_cupy_array(rows):
        import cupy
        import cupyx

        out = cupy.zeros((count, rows.shape[1]), rows.dtype)
        cupyx.scatter_add(out, ids, rows)
        return out
    xp = aac.array_namespace(ids, rows)
    hot = xp.arange(count, dtype=ids.dtype, device=aac.device(ids))[:, None] == ids[None, :]
    return xp.astype(hot, rows.dtype) @ rows


def erf(x: Array) -> Array:
    """The error function, elementwise."""
    if aac.is_torch_array(x):
        import torch

        return torch.erf(x)
    if aac.is_cupy_array(x):
        from cupyx.scipy import special

        return special.erf(x)
    host = to_numpy(x)
    try:
        from scipy.special import erf as host_erf
    except ImportError:  # slow and exact
        host_erf = np.vectorize(math.erf, otypes=[float])
    return like(host_erf(host).astype(host.dtype), x)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_threads(functions: list) -> list:
    """Call functions of no argument side by side; returns their results in order, whatever order they end in.

    They see the caller's context, np.errstate among it.
    """
    workers = min(cores(), len(functions))
    if workers < 2:
        return [function() for function in functions]
    results, todo = [None] * len(functions), iter(range(len(functions)))

    def work():
        for i in todo:
            results[i] = functions[i]()

    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(copy_context().run, work) for _ in range(workers)]:
            done.result()
    return results


def keep_memory(reserve: int = 1 << 30) -> None:
    """Let the C library keep freed memory for the next step, in large pages, rather than hand it back to the system.

    For programs that allocate the same arrays over and over, such as training: a page that comes fresh from the system
    costs more than what is computed on it (5 % of a training step).  `reserve` is address space, not memory.  On glibc
    alone; elsewhere nothing.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt, malloc, free, madvise = libc.mallopt, libc.malloc, libc.free, libc.madvise
    except (OSError, AttributeError, TypeError):
        return
    malloc.restype, malloc.argtypes, free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: never shrink the heap
    mallopt(-4, 0)  # M_MMAP_MAX: large arrays live in the heap too
    mallopt(-8, 1)  # M_ARENA_MAX: one heap for all threads
    start = malloc(reserve)
    if start:
        page = 2 << 20
        aligned = -(-start // page) * page
        madvise(aligned, (start + reserve - aligned) // page * page, 14)  # MADV_HUGEPAGE
        free(start)
