"""`python -m parity vectors`: regenerate and compare, or write the cases that have no file yet.  The only writer.

What is written never changes.  A case that must be different is a new case under a new name.
"""

import copy
import json
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from parity.vectors import budgets, read, runs, safe_read, witnesses
from parity.vectors.cases import FLAGS, FUNCTIONS, definitions
from parity.vectors.cases.core import Definition

TOTAL_LIMIT = 5_000_000  # bytes of the whole folder
USELESS = 0.5  # a budget of half the scale or more says that the reference itself has left that dtype's range
MEASURED = (
    "error = max|got - want| / scale. scale = max|want| of the tensor; where that is below fraction of the largest of its "
    "family (all grad.*; logits and losses; all out.params.*, out.m.*, out.v.*; else the tensor itself), that one; 1 where "
    "it is 0. budget = slack * max(error, one unit of rounding). The error in float32 is the worst of the reference's own "
    "runs: NumPy and torch arrays, in the given order and in three others of every dimension whose order means nothing; its"
    " float64 run on inputs nudged by one unit of rounding (at knife edges theta alone); and the distance in units of "
    "rounding between the reference and the oracle in float64. float64's is the same number of its own units. float16 and "
    "bfloat16: the same runs (bfloat16 on torch arrays alone), and no less than what float32 lost."
)
NAMES = {"float64": "F64", "float32": "F32", "int64": "I64", "bool": "BOOL"}


def main(options: Any) -> int:
    """Run the command; 0 if all is as it was frozen (and written, if asked), 1 if not."""
    folder = Path(options.folder or read.FOLDER)
    if options.check and options.write:
        raise ValueError("--check and --write: expected one of them; --write checks what is there as well")
    if options.write and not (folder / read.MANIFEST).exists():
        folder.mkdir(parents=True, exist_ok=True)
        if present := sorted(p.name for p in folder.iterdir()):
            raise ValueError(f"{present[0]}: refused: {folder} has files and no {read.MANIFEST}")
        manifest, frozen = empty_manifest(), {}
    else:
        manifest, frozen = copy.deepcopy(read.read_manifest(folder.resolve())), read.load(folder)
    cases = {case.id: case for case in definitions()}
    problems = [f"{name}: frozen, but no longer defined" for name in frozen.keys() - cases.keys()]
    new = [case for name, case in cases.items() if name not in frozen]
    for case in progress([case for name, case in cases.items() if name in frozen], "checking"):
        problems += differences(case, frozen[case.id])
    if not options.write:
        problems += [f"{case.id}: defined, but not written yet; --write adds it" for case in new]
    for line in problems:
        print(line)
    if problems:
        print(f"{len(problems)} differences. What is frozen never changes: a case that must differ gets a new name.")
        return 1
    if options.write:
        digest = write(folder, manifest, new)
        if digest and read.vouched_for(folder):
            print(f"{len(new)} cases were added to {folder}. They are read once the code names the new manifest; in "
                  f'parity/vectors/read.py:\nDIGEST = "{digest}"')
            return 0
        frozen = read.load(folder)
    tensors = sum(len(case.budget) for case in frozen.values())
    size = sum(p.stat().st_size for p in folder.iterdir())
    added = f", {len(new)} of them new" if options.write else ""
    print(f"{len(frozen)} cases{added}, {tensors} expected tensors, {size / 1e6:.2f} MB: "
          "inputs bit for bit, values within their float64 budgets, three witnesses agree.")  # fmt: skip
    if not read.vouched_for(folder):
        print(f"{folder}: no digest in the code to compare with; {read.MANIFEST} alone vouches for these files.")
    return 0


def differences(case: Definition, frozen: read.Case) -> Iterator[str]:
    """What a regenerated case has other than its frozen one: words, inputs to the bit, values to their float64 budgets."""
    about = {"level": FUNCTIONS[case.function].level, "function": case.function, "options": case.options, "flags": case.flags,
             "note": case.words, "accepts": case.accepts, "input_dtype": case.input_dtype}  # fmt: skip
    for name, value in about.items():
        if getattr(frozen, name) != value:
            yield f"{case.id}: {name} is frozen as {getattr(frozen, name)!r}, defined as {value!r}"
            return
    try:
        computed = witnesses.compute(case, thorough=False)
    except witnesses.Disagreement as error:
        yield str(error)
        return
    if computed.tensors.keys() != frozen.tensors.keys():
        yield f"{case.id}: tensors differ in {', '.join(sorted(computed.tensors.keys() ^ frozen.tensors.keys())[:5])}"
        return
    for name, x in computed.tensors.items():
        want = frozen.tensors[name]
        if name not in frozen.budget and (x.dtype, x.shape, x.tobytes()) != (want.dtype, want.shape, want.tobytes()):
            yield f"{case.id}: {name} differs from the frozen one"
    got = {name: x for name, x in computed.tensors.items() if name in frozen.budget}
    for difference in read.compare(frozen, got, "float64"):
        if not difference.ok:
            yield f"{case.id}: {difference}"


def write(folder: Path, manifest: dict, new: list[Definition]) -> str:
    """Add cases: first all in memory, then the files, then the manifest.   -> its sha256, "" where there is nothing to add"""
    from safetensors.numpy import save

    if (manifest["slack"], manifest["fraction"]) != (budgets.SLACK, budgets.FRACTION):
        raise ValueError(f"slack, fraction: frozen as {manifest['slack']}, {manifest['fraction']}; others need a new version")
    if not new:
        return ""
    number = writing(manifest)
    contents: dict[str, bytes] = {}
    known = {entry["id"]: entry for entry in manifest["cases"]}
    for case in progress(new, "writing"):
        entry, tensors = describe(case)
        for other in case.accepts:
            if other not in known:
                raise ValueError(f"{case.id}: accepts {other}, which is no earlier case")
        content = save({name: np.array(x, order="C") for name, x in tensors.items()})  # contiguous: views would be corrupted
        entry |= {"writing": number, "file": f"{case.id}.safetensors", "bytes": len(content)}
        entry |= {"sha256": safe_read.digest(content)}
        contents[entry["file"]] = content
        known[case.id] = entry
    manifest["flags"] = FLAGS
    manifest["cases"] = list(known.values())
    text = render(manifest)
    total = sum(entry["bytes"] for entry in manifest["cases"]) + len(text)
    if total > TOTAL_LIMIT:
        raise ValueError(f"{total} bytes in all, where at most {TOTAL_LIMIT} are allowed")
    for name, content in contents.items():
        with open(folder / name, "xb") as file:               # x: never over what is there
            file.write(content)
    temporary = folder / f".{read.MANIFEST}.new"
    temporary.write_bytes(text.encode())
    os.replace(temporary, folder / read.MANIFEST)
    return safe_read.digest(text.encode())


def describe(case: Definition) -> tuple[dict, dict[str, np.ndarray]]:
    """A case's entry in the manifest, and its tensors; raises Disagreement unless the witnesses agree."""
    computed = witnesses.compute(case)
    given = {name.partition(".")[2]: x for name, x in computed.tensors.items() if name.startswith("ct.")}
    measured = runs.measure(case, given, computed.gap)
    letters = FUNCTIONS[case.function].letters(case.options)
    tensors = {}
    for name, x in computed.tensors.items():
        short = name.partition(".")[2]
        about: dict[str, Any] = {"shape": list(x.shape), "axes": letters[short], "dtype": NAMES[str(x.dtype)]}
        if name in measured:
            m = measured[name]
            about["scale"] = float(f"{m.scale:.6g}")
            if axes := witnesses.padded_axes(case, name):
                about["padding"] = axes
            order = [dtype for dtype in budgets.EPS if dtype in m.budget]
            about["budget"] = {dtype: float(f"{m.budget[dtype]:.3g}") for dtype in order if m.budget[dtype] < USELESS}
            if not about["budget"].get("float64", 0) > computed.gap[name]:
                raise ValueError(f"{case.id}: {name}: the oracle is {computed.gap[name]:.3g} off, beyond the float64 budget")
        elif case.input_dtype != "float32" and x.dtype == np.float32:
            check_exact(case, name, x)
        tensors[name] = about
    entry = {"id": case.id, "level": FUNCTIONS[case.function].level, "function": case.function, "options": case.options,
             "flags": list(case.flags), "note": case.words, "accepts": list(case.accepts), "input_dtype": case.input_dtype,
             "tensors": tensors}  # fmt: skip
    return entry, computed.tensors


def check_exact(case: Definition, name: str, x: np.ndarray) -> None:
    """Inputs that are said to be of a smaller dtype must be exact in it."""
    import torch

    if not torch.equal(torch.tensor(x).to(getattr(torch, case.input_dtype)).float(), torch.tensor(x)):
        raise ValueError(f"{case.id}: {name} is not exact in {case.input_dtype}")


def empty_manifest() -> dict:
    """A manifest without cases."""
    return {"format": "sparc-vectors", "version": 1, "slack": budgets.SLACK, "fraction": budgets.FRACTION,
            "measured": MEASURED, "writings": [], "flags": {}, "cases": []}  # fmt: skip


def writing(manifest: dict) -> int:
    """The number of this writing: what was installed, listed once."""
    from importlib.metadata import version

    import sparc_ref

    now = {name: version(name) for name in ("numpy", "torch", "safetensors")}
    now |= {"python": platform.python_version(), "sparc_ref": sparc_ref.__version__}
    if now not in manifest["writings"]:
        manifest["writings"].append(now)
    return manifest["writings"].index(now)


def render(manifest: dict) -> str:
    """JSON with a line for each tensor, so that a person can read it and a diff shows what was added."""
    lines = ["{"]
    for name, value in manifest.items():
        if name != "cases":
            lines.append(f" {json.dumps(name)}: {json.dumps(value)},")
    lines.append(' "cases": [')
    for i, case in enumerate(manifest["cases"]):
        head = json.dumps({name: value for name, value in case.items() if name != "tensors"})
        lines.append(f'  {head[:-1]}, "tensors": {{')
        tensors = [f"   {json.dumps(name)}: {json.dumps(about)}" for name, about in case["tensors"].items()]
        lines += [line + "," for line in tensors[:-1]] + [tensors[-1]]
        lines.append("  }}" + ("," if i + 1 < len(manifest["cases"]) else ""))
    return "\n".join([*lines, " ]", "}", ""])


def progress(items: list, words: str) -> Any:
    """A bar on a terminal; silence in a log file."""
    from tqdm import tqdm

    return tqdm(items, desc=words, unit="case", leave=False, disable=not sys.stderr.isatty() or None)
