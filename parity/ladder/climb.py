"""The ladder: the reference against the trainer, from single operations to whole training runs.

    python -m parity ladder [--preset quick|full] [--device cpu|cuda] [--rungs losses gradients ...]

Each rung asks one question and yields its answers as rows in forward order (parity/rungs/).  Budgets are measured, never
felt: the reference's own float32 and bfloat16 runs against its float64 run, times budgets.SLACK.  The climb ends at the first
tensor that leaves its budget; that comparison is repeated in float64, which tells rounding from a fault.
"""

import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from parity.ladder import sensitivity
from parity.ladder.rungs import cuda, entry, objectives, ranks, replay, training, variants, whole
from parity.ladder.rungs.setup import NotRun, Row, Setup, Side, reference_side, trainer_side
from parity.vectors import budgets


@dataclass(frozen=True)
class Rung:
    """One question.  quick, full: how many seconds it takes on 2 cores, for the estimate of the progress bar alone."""

    name: str
    what: str
    climb: Callable[[Setup], Any]   # yields rows
    quick: float
    full: float
    devices: tuple[str, ...] = ("cpu", "cuda")


RUNGS = (
    Rung("ops", "The frozen vectors of single operations, replayed through the reference and through what the trainer uses.",
         replay.ops, 3, 3),
    Rung("losses", "The frozen vectors of both losses, replayed through reference and trainer, stage by stage.",
         replay.losses, 3, 3),
    Rung("encoders", "Both towers: frozen vectors, then the small model's features under random parameters.",
         whole.encoders, 4, 8),
    Rung("gradients", "Every gradient of the small model under random parameters and a random upstream gradient.",
         whole.gradients, 5, 12),
    Rung("steps", "Ten AdamW updates from the same weights on the same batches: losses, norms, parameters.",
         training.steps, 6, 50),
    Rung("band", "Training on drawn scenes: the trainer's loss stays where the reference's own rounding would leave it.",
         training.band, 10, 170),
    Rung("ranks", "Several processes: global loss and all gradients equal the single process on the concatenated batch.",
         ranks.ranks, 15, 45),
    Rung("compile", "torch.compile against eager: loss and every gradient.", variants.compiled, 20, 110),
    Rung("checkpointing", "Activation checkpointing against none: loss and every gradient.", variants.checkpointing, 1, 1),
    Rung("accumulation", "Gradient accumulation against one batch: loss and every gradient.", variants.accumulation, 1, 1),
    Rung("objectives", "What SPARC is compared with, and its ablations: frozen vectors; loss and every gradient on one process "
         "and on ranks; a few updates from the command line.", objectives.objectives, 100, 200),
    Rung("entry", "The trainer as it is started, on one process and on ranks by DDP and FSDP2: a few updates, to the export.",
         entry.entry, 40, 150),
    Rung("cupy", "CuPy and torch CUDA against NumPy on the CPU: SPARC's frozen vectors, every gradient of the small model.",
         cuda.backends, 60, 120, ("cuda",)),
    Rung("tf32", "Matrix products with TF32 off stay within the float32 budget; with TF32 on they must be seen leaving it.",
         cuda.tf32, 10, 20, ("cuda",)),
    Rung("vit_b_16", "One step of the paper's ViT-B/16 at batch 256 on the GPU, CuPy reference against trainer.",
         cuda.vit_b_16, 90, 150, ("cuda",)),
)


def run(
    preset: str = "quick",
    device: str = "cpu",
    *,
    seed: int = 0,
    threads: int = 1,
    reference: Side | None = None,
    trainer: Side | None = None,
    rungs: Sequence[str] | None = None,
    vectors: Path | None = None,
    wanted: Callable[[str], bool] | None = None,
    say: Callable[[str], Any] = lambda text: None,
    keep_going: bool = False,
    minutes: float = 0,
) -> dict[str, Any]:
    """Climb and return the results (report.py states their schema).

    reference, trainer  the modules of both sides; None: sparc_ref's and parity.trainer's
    rungs               names of RUNGS, in any order; None: all that the device has
    vectors, wanted     the folder of frozen vectors (None: the one of this package), and which of them to replay, by id
    keep_going          do not stop at the first tensor that leaves its budget
    minutes             a rung that would not end within so many is not run; 0: no limit
    Raises ValueError for an unknown preset or rung, and for a device that is not there.
    """
    from sparc_ref.backend import get_device

    get_device(device)
    if threads < 0 or seed < 0:
        raise ValueError(f"threads, seed: expected at least 0, got {threads}, {seed}")
    if preset not in ("quick", "full"):
        raise ValueError(f"preset: expected quick or full, got {preset!r}")
    chosen = choose(rungs, device)
    setup = Setup(preset, device, seed, reference or reference_side(), trainer or trainer_side(), vectors,
                  wanted or (lambda case_id: True))
    started, began = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.perf_counter()
    done: list[dict] = []
    failure = None
    exact = cuda.tf32_products(False) if device == "cuda" else nullcontext()
    with few_threads(threads), exact, progress(chosen, preset) as bar:
        in_effect = settings(setup, chosen)
        for rung in chosen:
            bar.start(rung)
            done.append({"name": rung.name, "what": rung.what, "status": "not run", "seconds": 0.0, "compared": 0, "blind": 0,
                         "reason": "an earlier rung failed", "cannot": False, "notes": [], "rows": [], "series": None})
            if failure and not keep_going:
                continue
            left = 60 * minutes - (time.perf_counter() - began)
            if minutes and left < getattr(rung, preset):
                takes = f"it takes about {getattr(rung, preset):.0f} s"
                done[-1]["reason"] = f"{takes}, and {max(0, left):.0f} s of {minutes:g} minutes are left"
                say(line(done[-1]))
                continue
            found = climb(rung, setup, done[-1], bar, keep_going)
            failure = failure or found
            say(line(done[-1]))
    passed = failure is None and any(each["status"] == "passed" for each in done)  # nothing run is nothing passed
    return {
        "schema": 2, "title": "Parity ladder", "passed": passed, "preset": preset, "device": device,
        "command": "", "started": started, "seconds": time.perf_counter() - began, "settings": in_effect,
        "versions": versions(device), "rungs": done, "sensitivity": sensitivity.table(done), "failure": failure,
    }


def climb(rung: Rung, setup: Setup, done: dict, bar: Any, keep_going: bool = False) -> dict | None:
    """Climb one rung and write what it said into `done`.  -> the failure, or None"""
    rows: dict[tuple, dict] = {}
    began, failure = time.perf_counter(), None

    def series(x):
        done["series"] = x

    setup = replace(setup, note=done["notes"].append, series=series, tick=bar.share)
    done |= {"status": "passed", "reason": ""}
    try:
        for row in rung.climb(setup):
            done["compared"] += 1
            done["blind"] += not row.proves
            keep(rows, row)
            bar.beat()
            if not row.ok and failure is None:
                failure = explain(rung, row)
                done["status"] = "failed"
                if not keep_going:
                    break
        if not rows:
            done |= {"status": "not run", "reason": "nothing was compared"}
        elif done["blind"] == done["compared"] and not failure:
            done |= {"status": "not run", "reason": f"nothing was proven: every budget is {budgets.PROVES:g} or more"}
    except NotRun as reason:
        done |= {"status": "failed" if failure else "not run", "reason": str(reason), "cannot": not failure}
    except Exception as error:  # what is on trial may do anything
        row = Row(f"raised {type(error).__name__}", "float64", "trainer", float("inf"), 0.0, where=trail(error))
        keep(rows, row)
        failure = failure or explain(rung, row) | {"verdict": "It did not get as far as a number."}
        done |= {"status": "failed", "reason": str(error)}
    done |= {"rows": list(rows.values()), "seconds": time.perf_counter() - began}
    return failure


def keep(rows: dict, row: Row) -> None:
    """Of all rows of one name, side and dtype keep the worst that proves something, and count them.

    What a gradient's comparisons notice is what the one that sees most notices.
    """
    from parity.ladder.report import headroom

    as_dict = {f.name: getattr(row, f.name) for f in fields(row) if f.name != "again"}
    as_dict |= {"ok": row.ok, "proves": row.proves, "count": 1, "blind": int(not row.proves)}
    key = (row.name, row.side, row.dtype)
    if key in rows:
        before = rows[key]
        if (not row.ok, row.proves, headroom(as_dict)) > (not before["ok"], before["proves"], headroom(before)):
            rows[key] = as_dict | {"note": as_dict["note"] or before["note"]}
        rows[key] |= {"count": before["count"] + 1, "blind": before["blind"] + (not row.proves)}
        rows[key]["notices"] = sees_more(before["notices"], row.notices)
    else:
        rows[key] = as_dict


def sees_more(one: float | None, other: float | None) -> float | None:
    """The smaller of two numbers that may be NaN, a gradient that is exactly zero, or None, no gradient."""
    if one is None or other is None:
        return other if one is None else one
    return float(np.fmin(one, other))


def trail(error: Exception) -> str:
    """Its message and the innermost lines that led to it."""
    import traceback

    calls = traceback.extract_tb(error.__traceback__)[-3:]
    lines = " <- ".join(f"{Path(call.filename).name}:{call.lineno} {call.name}" for call in reversed(calls))
    return f"{str(error)[:300]} ({lines})"


def explain(rung: Rung, row: Row) -> dict[str, Any]:
    """The first tensor that left its budget, and the same comparison in float64: rounding, or a fault?"""
    only: dict = {}
    keep(only, row)
    found: dict[str, Any] = {"rung": rung.name, "row": next(iter(only.values())), "float64": None}
    if row.must_leave:
        verdict = "An error that was planted was not seen: this rung could not fail, so it proves nothing here."
    elif row.dtype == "float64":
        verdict = "This is float64 already: a fault, not rounding."
    elif row.again is None:
        verdict = "This comparison has no float64 twin."
    else:
        error, budget = row.again()
        found["float64"] = {"error": error, "budget": budget}
        verdict = f"The same comparison in float64: off by {error:.1e}, its budget is {budget:.1e}. "
        verdict += ("So the formula is right and its arithmetic in " + row.dtype + " is not." if error <= budget
                    else "So it is a fault, not rounding.")
    return found | {"verdict": verdict}


def choose(names: Sequence[str] | None, device: str) -> list[Rung]:
    """The rungs by name, in the ladder's order; ValueError for a name that the device does not have."""
    here = [rung for rung in RUNGS if device in rung.devices]
    if not names:
        return here
    unknown = [name for name in names if name not in [rung.name for rung in here]]
    if unknown:
        raise ValueError(f"rungs: expected any of {', '.join(r.name for r in here)}; got {', '.join(unknown)}")
    return [rung for rung in here if rung.name in names]


# ------------------------------------------------------------------------------------------------- what a person sees


def line(done: dict) -> str:
    """One rung in one line."""
    from parity.ladder.report import describe, headroom

    if done["status"] == "not run":
        return f"{done['name']:14} not run: {done['reason']}"
    if done["status"] == "failed":
        return f"{done['name']:14} FAILED: {describe(next(r for r in done['rows'] if not r['ok']))}"
    closest = max((r for r in done["rows"] if r["proves"] and not r["must_leave"]), key=headroom, default=None)
    text = f", closest to its budget: {closest['name']} ({closest['dtype']}) at {headroom(closest):.0%}" if closest else ""
    blind = f", {done['blind']:,} of them prove nothing," if done["blind"] else ""
    return f"{done['name']:14} ok, {done['compared']:,} comparisons{blind} in {done['seconds']:.0f} s{text}"


class Progress:
    """A bar over estimated seconds; on anything but a terminal nothing, for each rung prints its line anyway."""

    def __init__(self, bar, preset):
        self.bar, self.preset, self.before, self.expected, self.began = bar, preset, 0.0, 0.0, time.perf_counter()

    def start(self, rung):
        self.before += self.expected
        self.expected, self.began = getattr(rung, self.preset), time.perf_counter()
        if self.bar is not None:
            self.bar.set_description(rung.name)
            self.show(0.0)

    def beat(self):
        self.show(min(0.99, (time.perf_counter() - self.began) / self.expected))

    def share(self, share):
        self.show(share)

    def show(self, share):
        if self.bar is not None:
            self.bar.n = round(min(self.before + share * self.expected, self.bar.total), 1)
            self.bar.refresh()


@contextmanager
def progress(chosen, preset):
    if not sys.stderr.isatty():
        yield Progress(None, preset)
        return
    from tqdm import tqdm

    shape = "{desc:14} {percentage:3.0f}% {bar} {elapsed}, about {remaining} left"
    with tqdm(total=sum(getattr(r, preset) for r in chosen), bar_format=shape, leave=False, file=sys.stderr) as bar:
        yield Progress(bar, preset)


@contextmanager
def few_threads(threads: int):
    """torch and BLAS on so many threads, afterwards as before; 0 changes nothing."""
    if not threads:
        yield
        return
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        torch.set_num_threads(before)


def say(text: str) -> None:
    """Print above the bar."""
    if not sys.stderr.isatty():
        print(text)
        return
    from tqdm import tqdm

    tqdm.write(text)


def settings(setup: Setup, chosen: Sequence[Rung]) -> dict[str, Any]:
    """Everything that was in effect."""
    import torch

    return {
        "preset": setup.preset, "device": setup.device, "seed": setup.seed, "threads": torch.get_num_threads(),
        "dtypes": "float64, float32, mixed (bfloat16 autocast)", "TF32": tf32_state(setup.device),
        "budget": f"{budgets.SLACK:g} x the reference's own error against float64; from {budgets.PROVES:g} on none",
        "rungs": ", ".join(rung.name for rung in chosen), "vectors": str(setup.vectors or "parity/vectors/v1"),
        **{f"size: {name}": value for name, value in asdict(whole.sizes(setup)).items()},
    }


def tf32_state(device: str) -> str:
    """Whether float32 products may be rounded to TF32 here, by torch's and CuPy's settings."""
    import torch

    if device == "cpu":
        return "off (CPU)"
    allowed = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
    return f"torch {'ON' if allowed else 'off'}, CuPy {'ON' if os.environ.get('CUPY_TF32') == '1' else 'off'}"


def versions(device: str) -> dict[str, str]:
    """What ran where."""
    import numpy as np
    import torch

    import sparc_ref

    found = {"sparc_ref": getattr(sparc_ref, "__version__", ""), "python": platform.python_version(), "numpy": np.__version__,
             "torch": torch.__version__, "platform": platform.platform(), "processor": processor()}
    if device == "cuda":
        import cupy

        properties = torch.cuda.get_device_properties(0)
        found |= {"cupy": cupy.__version__, "gpu": properties.name, "gpu memory": f"{properties.total_memory / 2**30:.0f} GiB",
                  "cuda": str(torch.version.cuda)}
    return found


def processor() -> str:
    """The CPU's name and how many cores this process may use."""
    from sparc_ref.backend import cores

    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            name = next((x.split(":", 1)[1].strip() for x in file if x.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}, {cores()} cores"


def announce(results_settings: dict, found: dict, out: Path) -> str:
    """The effective configuration, printed before the climb."""
    lines = [f"  {name:22} {value}" for name, value in (results_settings | found).items() if value != ""]
    return "\n".join(["climbing with", *lines, f"  {'output':22} {out}/"])


def main(command: Any) -> int:
    """`python -m parity ladder`.      command: commands.Ladder -> exit status, 1 when anything failed or nothing was run"""
    from parity.ladder import report
    from sparc_ref.backend import get_device

    get_device(command.device)
    chosen = choose(command.rungs, command.device)
    setup = Setup(command.preset, command.device, command.seed, reference_side(), trainer_side())
    with few_threads(command.threads):
        print(announce(settings(setup, chosen), versions(command.device), command.out))
    results = run(command.preset, command.device, seed=command.seed, threads=command.threads, rungs=command.rungs, say=say,
                  keep_going=command.keep_going, minutes=command.minutes)
    results["command"] = shlex.join(["python", "-m", "parity", *sys.argv[1:]])
    results["settings"]["output"] = str(command.out)
    report.terminal(results)
    paths = report.write(results, command.out)
    print("written: " + ", ".join(str(path) for path in paths.values()))
    return 0 if results["passed"] else 1
