"""Everything that needs a GPU, in one command of some minutes: `make gpu-check`, or

    python -m parity.ladder.gpu_check [--out docs/gpu] [--minutes 8] [--device cpu]

Parts are processes of their own with limits of their own, so that one that dies leaves the others.  First what must be right,
side by side: the ladder's rungs in several processes, the tests that name CUDA or CuPy.  Then what is timed, alone: the
trainer's updates, the growth of the objectives, the towers, the losses (bench/device.py); then a step of ViT-B/16 by CuPy and
by the trainer, and the reference's speed.  report-GPU-DATE.md and .json are written anew after every phase.
--device cpu: the same at toy size.
Exit status 0: all passed; 1: something failed; 2: there is no GPU here, or a package is missing, and it says which.
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).parents[2]
EARLIER = ("losses", "gradients", "steps", "band", "ranks", "compile", "checkpointing", "accumulation", "tf32", "ops",
           "encoders")
STREAM = "bf16 stream"                                    # bench/device.py's name for --precision bf16_stream
TARGETS = {"time": 1.05, "memory": 1.02, "mfu": 0.45}     # SPARC by the global loss alone, at most; FLOPs utilisation, at least


@dataclass(frozen=True)
class GpuCheck:
    """Everything that needs a GPU, in one command: the ladder on CUDA, the tests of CUDA and CuPy, what is timed."""

    out: Path = HERE / "docs" / "gpu"  # the folder for report-GPU-DATE.md and .json
    minutes: float = 8              # for all of it
    device: Literal["cuda", "cpu"] = "cuda"  # cpu: toy sizes, to see that everything runs
    parts: tuple[str, ...] = ()     # only these, by name
    benchmarks: Path | None = None  # only the reference's speed, into this file: what the command runs for itself


@dataclass(frozen=True)
class Part:
    """One process.  kind: "ladder" | "tests" | "rows"; seconds: its limit, of 480 s; result: the file that it writes"""

    name: str
    kind: str
    command: list[str]
    seconds: float
    result: Path | None = None


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
    lacking = missing() if options.device == "cuda" else []
    if lacking:
        print("gpu-check: this machine cannot run it. Missing:\n" + "\n".join(f"- {text}" for text in lacking), file=sys.stderr)
        return 2
    if options.benchmarks:
        toy: dict[str, Any] = {"models": {"tiny": (2, 4)}, "sizes": (16,), "width": 8, "rounds": 1}
        toy = {} if options.device == "cuda" else toy
        for each in benchmarks(options.device, **toy):
            with options.benchmarks.open("a") as lines:
                lines.write(json.dumps(each) + "\n")
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    began, gpu = time.monotonic(), name_of_gpu()
    found: dict[str, Any] = {}

    def write() -> str:
        name, text = report(found, time.monotonic() - began, gpu)
        (options.out / f"{name}.md").write_text(text)
        (options.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        return f"{text}\nwritten: {options.out / name}.md and .json"

    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        for done in run(plan(options, Path(folder)), options.minutes, began):
            found |= done
            said = write()
    print(said)
    return 0 if passed(found) else 1


def name_of_gpu() -> str:
    """As the driver says, without a context of our own on it."""
    try:
        asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout.splitlines()[0].strip() or "GPU"
    except (OSError, IndexError, subprocess.TimeoutExpired):
        return "GPU"


def plan(options: GpuCheck, folder: Path) -> list[list[Part]]:
    """What runs side by side, then what runs alone."""
    python, cuda = [sys.executable, "-m"], options.device == "cuda"

    def ladder(name: str, seconds: float, *rungs: str) -> Part:
        command = [*python, "parity", "ladder", "--device", options.device, "--keep-going", "--out", str(folder / name)]
        return Part(name, "ladder", [*command, "--rungs", *rungs], seconds, folder / name / "results.json")

    def bench(name: str, seconds: float, *more: str) -> Part:
        out = folder / f"{name}.jsonl"
        toy = [] if cuda else ["--no-compile", "--rounds", "1"]
        command = [sys.executable, str(HERE / "bench/device.py"), name, *more, *toy, "--out", str(out)]
        return Part(name, "rows", command, seconds, out)

    tests = [*python, "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-k", "cuda or cupy or gpu or GPU",
             str(HERE / "tests")] if cuda else [*python, "pytest", "-q", str(HERE / "tests/parity/trainer/test_meters.py")]
    speed = folder / "speed.jsonl"
    again = [*python, "parity.ladder.gpu_check", "--benchmarks", str(speed), "--device", options.device]
    right = [ladder("checkpointing", 400, "checkpointing")]
    if cuda:
        right = [ladder("entry", 130, "entry"), ladder("objectives", 130, "objectives"), ladder("earlier", 130, *EARLIER),
                 ladder("cupy", 130, "cupy")]
    phases = [[*right, Part("tests", "tests", tests, 130)], [bench("steps", 180)], [bench("growth", 50)], [bench("towers", 45)],
              [bench("losses", 25)], [ladder("vit_b_16", 90, "vit_b_16")] if cuda else [],
              [Part("speed", "rows", again, 45, speed)]]
    chosen = [[part for part in phase if not options.parts or part.name in options.parts] for phase in phases]
    return [phase for phase in chosen if phase]


def run(phases: list[list[Part]], minutes: float, began: float) -> Iterator[dict[str, Any]]:
    """Each phase's parts side by side, as many as cores allow, each within its limit and what is left of all.
    -> by name: {kind, status, seconds, said, result}"""
    for phase in phases:
        with ThreadPoolExecutor(max(1, min(len(phase), (os.cpu_count() or 1) // 2))) as pool:
            tasks = [pool.submit(one, part, minutes, began) for part in phase]
            yield {part.name: task.result() for part, task in zip(phase, tasks)}


def one(part: Part, minutes: float, began: float) -> dict[str, Any]:
    left = 60 * minutes - (time.monotonic() - began)
    limit = min(part.seconds * minutes / 8, left)
    if limit < 10:
        return {"kind": part.kind, "status": "not begun: out of time", "seconds": 0.0, "said": [], "command": part.command[1:],
                "result": None}
    print(f"--- {part.name}, at most {limit:.0f} s: {' '.join(part.command)}", flush=True)
    found = in_process(part.command, limit, part.name)
    return found | {"kind": part.kind, "result": results_of(part)}


def results_of(part: Part) -> Any:
    """What it wrote, as far as it came."""
    if part.result is None or not part.result.exists():
        return None
    text = part.result.read_text()
    if part.kind == "ladder":
        return slim(json.loads(text))
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def slim(results: dict[str, Any]) -> dict[str, Any]:
    """A ladder's results with those rows alone that failed, and of each rung the ten that came closest to their budgets."""
    from parity.ladder.report import headroom

    for rung in results["rungs"]:
        fine = sorted((row for row in rung["rows"] if row["ok"]), key=headroom, reverse=True)
        rung["rows"] = [row for row in rung["rows"] if not row["ok"]][:100] + [row for row in fine if row["proves"]][:10]
    return results


def in_process(command: list[str], limit: float, name: str = "") -> dict[str, Any]:
    """Run a command, show what it says, and keep the end of it.      -> status, seconds, said"""
    paths = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": paths}
    began, said, late = time.monotonic(), [], threading.Event()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=HERE)

    def stop() -> None:
        late.set()
        child.kill()

    timer = threading.Timer(limit, stop)
    timer.start()
    try:
        assert child.stdout is not None
        for line in child.stdout:
            print(f"{name}| {line}" if name else line, end="", flush=True)
            said.append(line.rstrip("\n"))
        code = child.wait()
    finally:
        timer.cancel()
    seconds = time.monotonic() - began
    status = "stopped: out of time" if late.is_set() and code else "passed" if code == 0 else f"failed, exit status {code}"
    return {"status": status, "seconds": round(seconds, 1), "said": said[-80:], "command": command[1:]}


def passed(found: dict[str, Any]) -> bool:
    """All parts ended well, each with something to show, and the ladder left nothing out that this machine can do."""
    return not problems(found)


def problems(found: dict[str, Any]) -> list[str]:
    """Why the check is not passed, a line each.  Nothing run is nothing passed."""
    said = [] if found else ["nothing was run"]
    for name, part in found.items():
        said += [f"{name}: {part['status']}"] if part["status"] != "passed" else []
        ladder = part["result"]
        if part["kind"] == "tests":
            if not any(int(n) for line in part["said"] for n in re.findall(r"\b(\d+) passed\b", line)):
                said.append(f"{name}: none was run")
        elif part["kind"] == "rows":
            said += [] if any(row.get("seconds") for row in ladder or []) else [f"{name}: none was run"]
        elif ladder is None:
            said.append(f"{name}: it wrote no results")
        else:
            said += [] if ladder["passed"] else [f"{name}: it did not pass"]
            said += [f"{name}: {r['name']} was not run: {r['reason']}" for r in ladder["rungs"]
                     if r["status"] == "not run" and not r["cannot"]]
            if not any(r["status"] == "passed" and r["blind"] < r["compared"] for r in ladder["rungs"]):
                said.append(f"{name}: nothing was run")
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


def report(found: dict[str, Any], seconds: float, gpu: str, date: str | None = None) -> tuple[str, str]:
    """The name of the report and its text, Markdown."""
    from parity.ladder.climb import line
    from parity.ladder.report import describe

    date = date or time.strftime("%Y-%m-%d")
    name = f"report-{re.sub(r'[^A-Za-z0-9]+', '-', gpu).strip('-')}-{date}"
    out = [f"# {gpu}, {date}", "", f"`make gpu-check`: {'passed' if passed(found) else '**FAILED**'} in {seconds:.0f} s.", ""]
    out += [*(f"- {text}" for text in problems(found)), *targets(found), ""]
    out += ["| part | outcome | seconds |", "| --- | --- | ---: |"]
    out += [f"| {part} | {x['status']} | {x['seconds']:.0f} |" for part, x in found.items()]
    for part, x in found.items():
        out += ["", f"## {part}", ""]
        if x["result"] is None or x["kind"] == "tests":
            out += quoted(x["said"][-25:])
        elif x["kind"] == "ladder":
            bad = [row for rung in x["result"]["rungs"] for row in rung["rows"] if not row["ok"]]
            v, r = x["result"]["versions"], x["result"]
            named = ", ".join(f"{key} {v[key]}" for key in ("torch", "cupy", "numpy", "gpu") if v.get(key))
            out += [f"{named}; {r['seconds']:.0f} s", "", *(f"- {line(rung).replace('  ', ' ')}" for rung in r["rungs"])]
            out += [f"  - {note}" for rung in r["rungs"] for note in rung["notes"]]
            out += ["", r["failure"]["verdict"], "", *(f"- {describe(row)}" for row in bad[:25])] if r["failure"] else []
        else:
            out += tables(x["result"])
    return name, "\n".join(out).rstrip() + "\n"


def targets(found: dict[str, Any]) -> list[str]:
    """What was aimed at, what came: ratios at the largest batch, utilisation at the batch that did best."""
    rows = [row for part in found.values() if part["kind"] == "rows" for row in part["result"] or []]
    said = []
    for key in TARGETS:
        mine = [row for row in rows if row.get("how") in ("compiled", STREAM) and row.get("what") != "global loss alone"]
        here = [(row[key], row) for row in mine if row.get(key)]
        if here:
            value, row = max(here, key=lambda pair: pair[0] if key == "mfu" else pair[1]["batch"])
            aim, met = TARGETS[key], value >= TARGETS[key] if key == "mfu" else value <= TARGETS[key]
            words = {"time": "SPARC's update by that of the global loss alone, time", "memory": "the same, peak memory",
                     "mfu": "model FLOPs utilisation"}[key]
            sign = "at least" if key == "mfu" else "at most"
            outcome = "met" if met else "**missed**"
            how = "compiled" if row["how"] == "compiled" else f"compiled, {STREAM}"
            said.append(f"- {words}: {value:.3f} at batch {row['batch']}, {how}; aim {sign} {aim}: {outcome}")
    return said


def tables(rows: list[dict[str, Any]]) -> list[str]:
    """A table for each kind of row, in the order in which they came."""
    out: list[str] = []
    for kind in dict.fromkeys(row.get("kind", "") for row in rows):
        mine = [{k: x for k, x in row.items() if k != "kind"} for row in rows if row.get("kind", "") == kind]
        names = list(dict.fromkeys(name for row in mine for name in row))
        out += [f"**{kind}**", ""] if kind else []
        out += ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
        out += ["| " + " | ".join(cell(row.get(name)) for name in names) + " |" for row in mine] + [""]
    return out


def cell(x: Any) -> str:
    return "" if x is None else f"{x:.4g}" if isinstance(x, float) else str(x).replace("|", "\\|").replace("\n", " ")


def quoted(lines: list[str]) -> list[str]:
    return ["```", *(line.replace("```", "'''") for line in lines), "```"]


if __name__ == "__main__":
    sys.exit(main())
