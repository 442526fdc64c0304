"""Everything that needs a GPU, in one command under ten minutes: `make gpu-check`, or

    python -m parity.ladder.gpu_check [--out docs/gpu] [--minutes 9.5]

Three parts, each a process of its own, so that one that dies leaves the others: the ladder with --device cuda, the tests that
name CUDA or CuPy, and benchmarks.  Writes report-GPU-DATE.md and report-GPU-DATE.json.  Exit status 0: all passed; 1: something
failed; 2: there is no GPU here, or a package is missing, and it says which.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).parents[2]
SHARES = {"ladder": 0.66, "tests": 0.10, "benchmarks": 0.24}  # of the minutes; what a part leaves over, the next may use


@dataclass(frozen=True)
class GpuCheck:
    """Everything that needs a GPU, in one command: the ladder on CUDA, the tests of CUDA and CuPy, benchmarks."""

    out: Path = HERE / "docs" / "gpu"  # the folder for report-GPU-DATE.md and .json
    minutes: float = 9.5            # for all of it
    benchmarks: Path | None = None  # only the benchmarks, as JSON into this file: what the command runs for itself


def missing() -> list[str]:
    """What has to be there and is not; empty where everything is."""
    from sparc_ref.backend import get_device

    found = []
    try:
        import torch

        if not torch.cuda.is_available():
            found.append(f"torch {torch.__version__} sees no GPU: torch.cuda.is_available() is False")
    except ModuleNotFoundError:
        found.append("torch: pip install '.[parity]' in a clone of sparc_ref")
    try:
        get_device("cuda")
    except ValueError as error:
        found.append(str(error))
    for name in ("rich", "tqdm", "jsonschema", "safetensors"):
        try:
            __import__(name)
        except ModuleNotFoundError:
            found.append(f"{name}: pip install '.[parity]' in a clone of sparc_ref")
    return found


def main(argv: list[str] | None = None) -> int:
    """Run all parts and write the report.      -> exit status"""
    try:
        import tyro
    except ModuleNotFoundError:
        print("gpu-check: tyro is missing: pip install '.[parity]' in a clone of sparc_ref", file=sys.stderr)
        return 2
    options = tyro.cli(GpuCheck, args=argv, prog="python -m parity.ladder.gpu_check")
    lacking = missing()
    if lacking:
        print("gpu-check: this machine cannot run it. Missing:\n" + "\n".join(f"- {text}" for text in lacking), file=sys.stderr)
        return 2
    if options.benchmarks:
        options.benchmarks.write_text(json.dumps(list(benchmarks("cuda")), indent=1))
        return 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        found = parts(Path(folder), options.minutes, began)
    name, text = report(found, time.monotonic() - began)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.md").write_text(text)
    (options.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(text)
    print(f"written: {options.out / name}.md and .json")
    return 0 if passed(found) else 1


def parts(folder: Path, minutes: float, began: float) -> dict[str, Any]:
    """The three parts one after the other, each within what is left.      -> by name: {status, seconds, said, result}"""
    ladder, numbers = folder / "ladder", folder / "benchmarks.json"
    python = [sys.executable, "-m"]
    commands = {
        "ladder": [*python, "parity", "ladder", "--device", "cuda", "--out", str(ladder)],
        "tests": [*python, "pytest", "-q", "-rs", "-k", "cuda or cupy or gpu or GPU", str(HERE / "tests")],
        "benchmarks": [*python, "parity.ladder.gpu_check", "--benchmarks", str(numbers)],
    }
    results = {"ladder": ladder / "results.json", "benchmarks": numbers}
    found: dict[str, Any] = {}
    until = began
    for name, command in commands.items():
        until += 60 * minutes * SHARES[name]
        limit = max(10.0, until - time.monotonic())
        if name == "ladder":
            command += ["--minutes", f"{limit / 60 - 0.2:.2f}"]  # it stops by itself before it is stopped
        print(f"--- {name}, at most {limit:.0f} s: {' '.join(command)}", flush=True)
        found[name] = in_process(command, limit)
        path = results.get(name)
        found[name]["result"] = json.loads(path.read_text()) if path and path.exists() else None
    return found


def in_process(command: list[str], limit: float) -> dict[str, Any]:
    """Run a command, show what it says, and keep the end of it.      -> status, seconds, said"""
    paths = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": paths}
    began, said = time.monotonic(), []
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=HERE)
    timer = threading.Timer(limit, child.kill)
    timer.start()
    try:
        assert child.stdout is not None
        for line in child.stdout:
            print(line, end="", flush=True)
            said.append(line.rstrip("\n"))
        code = child.wait()
    finally:
        timer.cancel()
    seconds = time.monotonic() - began
    status = "stopped: out of time" if seconds >= limit and code else "passed" if code == 0 else f"failed, exit status {code}"
    return {"status": status, "seconds": round(seconds, 1), "said": said[-60:], "command": command[1:]}


def passed(found: dict[str, Any]) -> bool:
    """All parts ended well, each with something to show, and the ladder left nothing out that this machine can do."""
    return not problems(found)


def problems(found: dict[str, Any]) -> list[str]:
    """Why the check is not passed, a line each.  Nothing run is nothing passed."""
    said = [f"{name}: {part['status']}" for name, part in found.items() if part["status"] != "passed"]
    ladder = found["ladder"]["result"]
    if ladder is None:
        said.append("ladder: it wrote no results")
    else:
        said += [] if ladder["passed"] else ["ladder: it did not pass"]
        said += [f"ladder: {r['name']} was not run: {r['reason']}" for r in ladder["rungs"]
                 if r["status"] == "not run" and not r["cannot"]]
        if not any(r["status"] == "passed" and r["blind"] < r["compared"] for r in ladder["rungs"]):
            said.append("ladder: nothing was run")
    if not any(int(n) for line in found["tests"]["said"] for n in re.findall(r"\b(\d+) passed\b", line)):
        said.append("tests: none was run")
    if not any(row["seconds"] for row in found["benchmarks"]["result"] or []):
        said.append("benchmarks: none was run")
    return said


# ------------------------------------------------------------------------------------------------------------- benchmarks


def benchmarks(device: str, models: dict[str, tuple[int, int]] | None = None, sizes: tuple[int, ...] = (4096, 16384, 32768),
               width: int = 512, rounds: int = 5) -> Iterator[dict[str, Any]]:
    """One row a measurement: {what, side, seconds, GiB}; a row that ran out of memory says so.

    models: preset -> batch, tokens.  sizes: batches of the global loss.  On "cpu" the same lines run, for the tests.
    """
    from parity.ladder.rungs import cuda
    from parity.ladder.rungs.setup import Setup, reference_side, trainer_side

    setup = Setup("quick", device, 0, reference_side(), trainer_side())
    for model, (batch, length) in (models or {"small": (256, 16), "vit_b_32": (256, 32)}).items():
        config = cuda.PRESETS[model]
        drawn = cuda.plain_draw(setup, config, batch, min(length, config.max_tokens))
        what = f"one update, {model}, batch {batch}, {length} tokens"
        with cuda.tf32_products(False):
            yield row(what, "CuPy, float32", partial(cuda.reference_step, setup, drawn, rounds), device)
            yield row(what, "torch, float32", partial(cuda.trainer_step, setup, drawn, rounds), device)
            yield row(what, "torch, float32, checkpointed",
                      partial(cuda.trainer_step, setup, drawn, rounds, checkpoint=True), device)
            yield row(what, "torch, mixed (bfloat16)",
                      partial(cuda.trainer_step, setup, drawn, rounds, "mixed"), device)
        with cuda.tf32_products(True):
            yield row(what, "torch, float32 with TF32", partial(cuda.trainer_step, setup, drawn, rounds), device)
    for batch in sizes:
        for form, chunk in (("plain", 0), ("gathered", 0), ("chunked", 1024)):
            yield row(f"global loss with its gradient, batch {batch}, width {width}", f"torch, {form}",
                      partial(global_step, setup, batch, width, form, chunk, rounds), device)
    images, patches, length = (256, 196, 55) if device == "cuda" else (4, 9, 5)
    for part in (None, 32 if device == "cuda" else 2):
        yield row(f"fine-grained loss with its gradient, batch {images}, {patches} patches, {length} tokens, width {width}",
                  f"torch, {'whole' if part is None else f'{part} samples at a time'}",
                  partial(fine_step, setup, (images, patches, length, width), part, rounds), device)


def row(what: str, side: str, measure: Callable[[], tuple[float, float]], device: str) -> dict[str, Any]:
    """One measurement, with memory handed back before and after."""
    from parity.ladder.rungs import cuda

    cuda.release(device)
    try:
        seconds, peak = measure()
    except Exception as error:  # out of memory has a class of its own in either library
        if "memory" not in f"{type(error).__name__} {error}".lower():
            raise
        return {"what": what, "side": side, "seconds": None, "GiB": None}
    finally:
        cuda.release(device)
    return {"what": what, "side": side, "seconds": seconds, "GiB": peak / 2**30}


def global_step(setup: Any, batch: int, width: int, form: str, chunk: int, rounds: int) -> tuple[float, float]:
    """Eq. 1 and its gradient in float32.      -> median seconds, peak bytes"""
    import torch

    rng = torch.Generator().manual_seed(0)
    v_bar, t_bar = (torch.randn(batch, width, generator=rng).to(setup.device).requires_grad_() for _ in range(2))
    theta = torch.tensor(2.66, device=setup.device, requires_grad=True)
    options = {"form": form} | ({"chunk": chunk} if chunk else {})
    return timed(lambda: setup.trainer.loss.global_loss(v_bar, t_bar, theta, **options)[0].backward(), setup.device, rounds)


def fine_step(setup: Any, shape: tuple[int, int, int, int], chunk: int | None, rounds: int) -> tuple[float, float]:
    """Eq. 6 and its gradient in float32.      shape: B, P, L, D -> median seconds, peak bytes"""
    import torch

    batch, patches, length, width = shape
    rng = torch.Generator().manual_seed(0)
    v = torch.randn(batch, patches, width, generator=rng).to(setup.device).requires_grad_()
    t = torch.randn(batch, length, width, generator=rng).to(setup.device).requires_grad_()
    mask = torch.arange(length, device=setup.device) < torch.randint(1, length + 1, (batch, 1), generator=rng).to(setup.device)
    theta = torch.tensor(2.66, device=setup.device, requires_grad=True)
    loss = setup.trainer.loss.fine_grained_loss
    return timed(lambda: loss(v, t, mask, theta, chunk=chunk)[0].backward(), setup.device, rounds)


def timed(step: Callable[[], Any], device: str, rounds: int) -> tuple[float, float]:
    import torch

    from parity.ladder.rungs.cuda import wait

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(rounds + 1):                           # the first warms up
        wait(device)
        began = time.perf_counter()
        step()
        wait(device)
        seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return sorted(seconds[1:])[rounds // 2], peak


# ----------------------------------------------------------------------------------------------------------------- report


def report(found: dict[str, Any], seconds: float, date: str | None = None) -> tuple[str, str]:
    """The name of the report and its text, Markdown."""
    from parity.ladder.report import markdown

    ladder = found["ladder"]["result"]
    gpu = (ladder or {}).get("versions", {}).get("gpu") or "GPU"
    date = date or time.strftime("%Y-%m-%d")
    name = f"report-{re.sub(r'[^A-Za-z0-9]+', '-', gpu).strip('-')}-{date}"
    lines = [f"# {gpu}, {date}", "", f"`make gpu-check`: {'passed' if passed(found) else '**FAILED**'} in {seconds:.0f} s.", "",
             *(f"- {text}" for text in problems(found)), "", "| part | outcome | seconds |", "| --- | --- | ---: |"]
    lines += [f"| {part} | {x['status']} | {x['seconds']:.0f} |" for part, x in found.items()]
    lines += ["", "## Ladder", ""]
    lines += [markdown(ladder)] if ladder else ["It wrote no results. Its last words:", "", *quoted(found["ladder"]["said"])]
    lines += ["## Tests", "", *quoted(found["tests"]["said"][-25:]), "", "## Benchmarks", "", *table(found["benchmarks"])]
    return name, "\n".join(lines).rstrip() + "\n"


def table(part: dict[str, Any]) -> list[str]:
    """Seconds and memory; ratios beside the first side of each measurement."""
    if part["result"] is None:
        return ["No numbers. Last words:", "", *quoted(part["said"])]
    out = ["Medians. The ratio is to the first line of its group. Memory is the most that was held at once.", "",
           "| what | side | seconds | ratio | GiB |", "| --- | --- | ---: | ---: | ---: |"]
    first: dict[str, float] = {}
    for x in (SimpleNamespace(**x) for x in part["result"]):
        if x.seconds is None:
            out.append(f"| {x.what} | {x.side} | out of memory | | |")
            continue
        first.setdefault(x.what, x.seconds)
        out.append(f"| {x.what} | {x.side} | {x.seconds:.4f} | {x.seconds / first[x.what]:.2f} | {x.GiB:.2f} |")
    return out


def quoted(lines: list[str]) -> list[str]:
    return ["```", *(line.replace("```", "'''") for line in lines), "```"]


if __name__ == "__main__":
    sys.exit(main())
