"""A batch of anybody's training run, read from a file: a stranger's, so that sizes, names, dtypes and shapes come first.

Nothing in it is unpickled.
"""

import io
import math
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from parity.checker.calling.packing import visible
from parity.checker.exchange import read_arrays
from parity.checker.probes import Probe
from parity.vectors.safe_read import read_bytes

FILE_LIMIT = 1 << 30                                      # bytes of a file, and of its arrays
MOST = 1 << 26                                            # entries of the similarities, B L P
TEMPERATURES = ("theta", "scale", "tau")
GRADIENTS = tuple(f"grad_{name}" for name in ("v", "t", *TEMPERATURES))
NAMES = ("v", "t", "mask", *TEMPERATURES, "loss", *GRADIENTS)



def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, by name.  Raises ValueError for anything that is not a plain, small enough file of known arrays."""
    if path.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"{path.name}: batches are read from .npz, as np.savez writes it, and .safetensors; {path.suffix} may "
                         "hold code, or one array alone")
    if path.is_symlink():
        raise ValueError(f"{path.name}: refused: it is a link; name the file that it leads to")
    if path.is_dir():
        raise ValueError(f"{path.name}: is a folder, where a file of that name is expected")
    if path.suffix == ".npz":
        return read_npz(path.name, read_bytes(path.parent, path.name, FILE_LIMIT))

    def expect(file, header):
        check_names(file, list(header))
        total(file, sum(math.prod(x["shape"]) for x in header.values()) * 8)

    return read_arrays(path.parent, path.name, expect, FILE_LIMIT, ("F64", "F32", "I64", "U8", "BOOL"))


def read_npz(file: str, content: bytes) -> dict[str, np.ndarray]:
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ValueError(f"{file}: expected an .npz file, as np.savez writes it: {visible(error)}") from None
    if len(members) > 64:
        raise ValueError(f"{file}: {len(members)} members, where at most {len(NAMES)} are known")
    total(file, sum(m.file_size for m in members))
    names = [m.filename.removesuffix(".npy") for m in members]
    if len(set(names)) < len(names):
        raise ValueError(f"{file}: a name stands twice: {visible(', '.join(names)[:100])}")
    check_names(file, names)
    found = {}
    for name, member in zip(names, members):
        try:
            with archive.open(member) as stream:
                body = stream.read(member.file_size + 1)
        except (zipfile.BadZipFile, RuntimeError, OSError, EOFError, NotImplementedError, ValueError, zlib.error) as error:
            raise ValueError(f"{file}: {name}: {visible(error)}") from None
        found[name] = read_npy(file, name, body)
    return found


def read_npy(file: str, name: str, body: bytes) -> np.ndarray:
    """One array; its header is believed only if the bytes that follow are exactly as many."""
    stream = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(stream)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if reader is None:
            raise ValueError(f"version {version} of the format")
        shape, fortran, dtype = reader(stream)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, OverflowError, tokenize.TokenError) as error:
        raise ValueError(f"{file}: {name}: not an array of NumPy: {visible(error)[:200]}") from None
    if dtype.hasobject or dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise ValueError(f"{file}: {name}: expected float32 or float64 (mask: bool or integers), got {visible(dtype)[:60]}")
    size = math.prod(shape) * dtype.itemsize
    if len(body) - stream.tell() != size:
        raise ValueError(f"{file}: {name}: {visible(shape)[:60]} of {dtype} needs {size} bytes, the file has "
                         f"{len(body) - stream.tell()}")
    return np.frombuffer(body, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")


def check_names(file: str, names: list[str]) -> None:
    for name in names:
        if name not in NAMES:
            raise ValueError(f"{file}: {visible(name[:60])!r} is none of {', '.join(NAMES)}")
    for name in ("v", "t", "loss"):
        if name not in names:
            raise ValueError(f"{file}: {name} is missing; expected v (B,P,D), t (B,L,D), mask (B,L), theta, scale or tau, loss")
    given = [name for name in TEMPERATURES if name in names]
    if len(given) != 1:
        raise ValueError(f"{file}: expected one of theta = log(1/tau), scale = 1/tau, tau; got {' and '.join(given) or 'none'}")
    slopes = [f"grad_{name}" for name in TEMPERATURES if f"grad_{name}" in names]
    if len(slopes) > 1:
        raise ValueError(f"{file}: {' and '.join(slopes)}: expected the gradient of one temperature")


def total(file: str, size: int) -> None:
    if size > FILE_LIMIT:
        raise ValueError(f"{file}: its arrays take {size} bytes, where at most {FILE_LIMIT} are read")


def batch_of(path: Path, arrays: dict[str, np.ndarray]) -> tuple[Probe, float, dict[str, np.ndarray], str]:
    """-> the batch, its loss, gradients by leaf, and which temperature the file gives"""
    file = path.name
    v, t = arrays["v"], arrays["t"]
    if v.ndim != 3 or t.ndim != 3 or v.shape[0] != t.shape[0] or v.shape[2] != t.shape[2] or 0 in v.shape or 0 in t.shape:
        raise ValueError(f"{file}: expected v (B,P,D) and t (B,L,D) with the same B and D, got {v.shape} and {t.shape}")
    batch, patches, width = v.shape
    tokens = t.shape[1]
    if batch * patches * tokens > MOST:
        raise ValueError(f"{file}: B L P is {batch * patches * tokens}, where at most {MOST} is computed: save a smaller batch")
    mask = arrays.get("mask", np.ones((batch, tokens), bool))
    if mask.shape != (batch, tokens):
        raise ValueError(f"{file}: mask: expected (B,L) = {(batch, tokens)}, got {mask.shape}")
    if not np.isin(mask, (0, 1)).all():
        raise ValueError(f"{file}: mask: expected 1 for real tokens and 0 for padding, got other numbers too")
    shapes = {"v": v.shape, "t": t.shape}
    numbers: dict[str, np.ndarray] = {}
    for name, x in arrays.items():
        if name == "mask":
            continue
        if x.dtype not in (np.float32, np.float64):
            raise ValueError(f"{file}: {name}: expected float32 or float64, got {x.dtype}")
        wanted = shapes.get(name.removeprefix("grad_"), ())
        if x.shape != wanted and not (wanted == () and x.size == 1):
            raise ValueError(f"{file}: {name}: expected shape {wanted}, got {x.shape}")
        numbers[name] = x.astype(np.float64).reshape(wanted)
        if name in ("v", "t", *TEMPERATURES) and not np.isfinite(x).all():
            raise ValueError(f"{file}: {name} holds NaN or infinity: no loss of it is told from another")
    kind = next(name for name in TEMPERATURES if name in arrays)
    given = float(numbers[kind])
    if kind != "theta" and given <= 0:
        raise ValueError(f"{file}: {kind}: expected a positive number, got {given:g}")
    theta = given if kind == "theta" else math.log(given) * (1 if kind == "scale" else -1)
    if abs(theta) > 50:
        raise ValueError(f"{file}: {kind} = {given:g}, which makes 1/tau exp({theta:.3g}): expected tau between 1e-20 and 1e20")
    grads = {name: numbers[f"grad_{name}"] for name in ("v", "t") if f"grad_{name}" in numbers}
    slopes = {"theta": 1.0, "scale": math.exp(theta), "tau": -math.exp(-theta)}
    for name in TEMPERATURES:
        if f"grad_{name}" in numbers:
            grads["theta"] = numbers[f"grad_{name}"] * slopes[name]
    pooled = np.zeros((2, batch, width))
    return (Probe(visible(file), numbers["v"], numbers["t"], mask != 0, theta, pooled[0], pooled[1], flat=flat_rows(numbers)),
            float(numbers["loss"]), grads, kind)


def flat_rows(numbers) -> bool:
    """Whether some token is as similar to every patch."""
    s = numbers["t"] @ np.swapaxes(numbers["v"], 1, 2)
    return bool((np.ptp(s, -1) == 0).any())
