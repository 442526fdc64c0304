"""Check an implementation of SPARC's loss: what does it compute, and where does it leave the paper?

    report = parity.check(my_loss)                        # a function, a module, "pkg.mod:name", "file.py:name", or a folder
    print(report)                                         # report.verdict, .deviations, .to_json(), .write_html("page.html")

Exit codes of the command: 0 equals eq. 6 (or Listing 1 with --accept listing1), 1 differs or only under conditions,
2 usage, or a keyword is needed, 3 cannot run.
"""

import contextlib
import importlib.util
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.checker.calling.packing import visible
from parity.checker.calling.target import target_of
from parity.checker.calling.worker import INSIDE, Stopped, Worker

if TYPE_CHECKING:
    from parity.checker.calling.caller import Caller, Convention
    from parity.checker.dump.report import DumpReport
    from parity.checker.page.sheet import Report

SUFFIXES = (".npz", ".safetensors")                       # of a batch of a training run
OTHERS = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".mat", ".h5", ".hdf5")  # what others save such in
OVERRIDES = ("call", "patches", "tokens", "mask", "scale", "sigma", "returns", "attributes", "init", "set", "framework",
             "method", "isolate", "dtype")


NO_TORCH = "the check needs torch, of which a CPU build is enough: pip install '.[parity]' in a clone"


def has_torch() -> bool:
    """Whether torch can be imported, without importing it."""
    try:
        return importlib.util.find_spec("torch") is not None
    except ImportError:
        return False


class CheckerFault(ValueError):
    """A fault of the checker, not of what it checks."""


def check(
    target: Callable | str | Path,
    *,
    accept: tuple[str, ...] | str = (),
    time_limit: float = 30.0,
    budget: float = 300.0,
    memory_limit: float = 4.0,
    device: str = "cpu",
    env: tuple[str, ...] = (),
    network: bool = False,
    edges: str = "loose",
    **overrides: Any,
) -> "Report | DumpReport":
    """Say what an implementation computes.

    target        a function, a torch module or its class, another callable; "pkg.module:name", "file.py", "file.py:name"; a
                  folder that `export` wrote and a program has answered; or a batch of a training run, .npz or .safetensors
    accept        "listing1": that reading of the paper is as good
    time_limit    seconds for one call; budget: seconds for all of them; memory_limit: GiB beyond what it holds once loaded
    device        "cpu" | "cuda"
    env           names of environment variables that it may see beside PATH, HOME and their like
    network       leave it the network; else its code has none, where the system allows that
    edges         "strict": what shows only where numbers are exactly equal, such as > for >=, counts as a difference
    overrides     what inference should not decide:
        call        words in calling order: "v,t,mask,scale", "text=t,image=v_bdhw,temperature=tau"; see caller.SHOWN
        patches, tokens, mask, scale   one word each: v_cls, t_bdl, padding, tau ...; mask="none", scale="fixed"
        sigma       "default" | "1/P" | a number, for an argument of that kind
        returns     "fine" | "global" | "total" | "loss_a=fine,loss_b=global"
        attributes  {"logit_scale": "theta"}: where an instance keeps its temperature
        init, set   arguments of the constructor, of the call
        method      what to call on an instance;  isolate: {"vision": "v", "text": "t", "proj": "identity"} parts of a model
        framework   "torch" | "jax" | "numpy" | "tensorflow" | "cupy";  dtype: "float64" | "float32"
    Raises ValueError for a target that makes no sense, and convention.Unclear where one keyword would decide.  What the
    implementation itself raises is the verdict cannot_run.
    """
    if not has_torch():
        raise ModuleNotFoundError(NO_TORCH, name="torch")
    if unknown := set(overrides) - set(OVERRIDES):
        raise ValueError(f"check: no option {', '.join(sorted(unknown))}; there are {', '.join(OVERRIDES)}")
    accept = (accept,) if isinstance(accept, str) else tuple(accept)
    if bad := set(accept) - {"listing1"}:
        raise ValueError(f"accept: expected listing1, got {', '.join(sorted(bad))}")
    if edges not in ("loose", "strict"):
        raise ValueError(f'edges: expected "loose" or "strict", got {edges!r}')
    for limit, given in (("time_limit", time_limit), ("budget", budget), ("memory_limit", memory_limit)):
        if not given > 0:
            raise ValueError(f"{limit}: expected more than 0, got {given:g}")
    if device not in ("cpu", "cuda"):
        raise ValueError(f'device: expected "cpu" or "cuda", got {device!r}')
    if isinstance(target, str | Path) and Path(target).is_dir() and Path(target).suffix not in SUFFIXES:
        from parity.checker.exchange import judge

        with one_thread():
            return replace(judge(Path(target), edges == "strict"), accept=accept)
    if isinstance(target, str | Path) and (Path(target).suffix in SUFFIXES or (
            Path(target).suffix in OTHERS and Path(target).is_file())):
        from parity.checker.dump.judge import judge as judge_dump

        if overrides:
            raise ValueError(f"check {target}: {', '.join(overrides)}: these options are for code; a file is read as it stands")
        with one_thread():
            return judge_dump(Path(target), accept)
    name = visible(target if isinstance(target, str | Path) else name_of(target))
    start = time.monotonic()
    common: dict[str, Any] = {"accept": accept, "device": device}
    if os.environ.get(INSIDE):                            # a file that checks itself, imported by a check
        from parity.checker.diagnosis.diagnose import Diagnosis
        from parity.checker.page.sheet import Report

        return Report(name, Diagnosis("cannot_run", note="not checked: this is already inside a check"), **common)
    limits: dict[str, Any] = {"budget": budget, "env": env, "network": network}
    with Worker(target_of(target), time_limit, int(memory_limit * 2**30), device, **limits) as worker:
        if worker.how == "process":
            worker.launch()                               # its imports and ours, side by side
        from parity.checker.calling.convention import infer
        from parity.checker.calling.trial import CannotRun
        from parity.checker.diagnosis.diagnose import Diagnosis
        from parity.checker.page.sheet import Report, versions

        if device == "cuda":
            import torch

            if not torch.cuda.is_available():
                raise ValueError("device cuda: torch sees no GPU here; leave the device at cpu")
        common |= {"versions": versions()}
        try:
            with one_thread():
                report = best_of(worker, infer(chosen(worker, name, overrides), overrides), name, edges == "strict")
        except Stopped as stop:
            error = {"type": stop.kind, "message": str(stop), "lines": [], "call": ""}
            return Report(name, Diagnosis("cannot_run", error=str(stop)), error=error, seconds=time.monotonic() - start,
                          calls=worker.asked, runs_in=worker.how, **common)
        except CannotRun as stop:
            error = {"type": stop.error["type"], "message": stop.error["message"], "lines": stop.error.get("lines", []),
                     "call": "import" if stop.call == "import" else stop.call}
            return Report(name, Diagnosis("cannot_run", error=str(stop)), error=error, seconds=time.monotonic() - start,
                          calls=worker.asked, runs_in=worker.how, notes=stop.notes, **common)
        notes = (*report.notes, *(report.convention.notes if report.convention else ()))
        if report.verdict == "listing1" and "listing1" not in accept:
            notes = (*notes, "--accept listing1 takes that reading of the paper as right: exit status 0")
        if worker.how == "here":
            notes = (*notes, "it ran in this process, without limits of time and memory: it has no name to import it by")
        elif worker.how == "fork":
            notes = (*notes, "it ran in a fork of this process: it has no name to import it by")
        return replace(report, notes=notes, seconds=time.monotonic() - start, calls=worker.asked, runs_in=worker.how,
                       network=worker.network, **common)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread: arrays are small here, and more threads than cores cost much more than they give."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def chosen(worker: Worker, name: str, overrides: dict[str, Any]) -> Worker:
    """Raise Unclear where a file holds several candidates, of which `method` names none."""
    from parity.checker.calling.trial import CannotRun, Unclear

    try:
        if "object" not in worker.target:
            worker.start()
    except Stopped as stop:
        raise CannotRun({"type": stop.kind, "message": str(stop), "lines": []}, "import") from None
    if worker.candidates:
        method = overrides.get("method")
        named = [c for c in worker.candidates if method and c.rpartition(".")[2] == method]
        if len(named) == 1:
            overrides.pop("method")
            worker.reload(target_of(f"{name.removesuffix(':' + str(worker.target.get('name')))}:{named[0]}"))
            return worker
        file = name.removesuffix(f":{worker.target.get('name')}")
        lines = "\n".join(f"    {file}:{visible(candidate)}" for candidate in worker.candidates[:12])
        raise Unclear(f"{name} holds several functions that could be the loss; name one of\n{lines}")
    return worker


def best_of(worker: Worker, conventions: "list[Convention]", name: str, edges: bool = False) -> "Report":
    """Diagnose under each convention that is left, and keep the one that explains most with least."""
    from parity.checker.calling.trial import Unclear

    reports, callers = [], {}
    for convention in conventions:
        report, callers[convention.written, tuple(convention.losses)] = judged(worker, convention, name, edges)
        reports.append(report)
        if report.verdict != "unexplained" and len({c.written for c in conventions}) == 1:
            break
    rank = {"eq6": 0, "listing1": 0, "conditional": 1, "explained": 2, "unexplained": 3, "cannot_run": 4}
    reports.sort(key=lambda r: (rank[r.verdict], len(r.deviations), len(r.conditions)))
    best = reports[0]
    for other in reports[1:]:
        mine, theirs = best.convention, other.convention
        assert mine is not None and theirs is not None
        tie = (rank[best.verdict], len(best.deviations)) == (rank[other.verdict], len(other.deviations))
        if tie and mine.written != theirs.written and best.verdict != "unexplained" and best.deviations != other.deviations:
            raise Unclear(
                f"{mine.name} reads equally well as --call {mine.written} ({best.summary}) and as --call {theirs.written} "
                f"({other.summary}). Add the one that is meant."
            )
    assert best.convention is not None
    if best.verdict == "unexplained" and unnamed(best.convention):
        raise Unclear(
            f"no name of {name} says which arguments are patches and tokens; called as {best.convention} it is not the paper's "
            f"loss. Say its arguments in calling order: --call {best.convention.written} for this reading, or another; pooled "
            "embeddings are v_bar,t_bar"
        )
    if best.verdict == "unexplained" or (best.verdict == "conditional" and not best.deviations):
        ask_for_a_better_call(worker, best, name, edges)
    return finished(callers[best.convention.written, tuple(best.convention.losses)], best)


def ask_for_a_better_call(worker: Worker, report: "Report", name: str, edges: bool) -> None:
    """Raise Unclear where a guess of ours may be why nothing explains it."""
    from parity.checker.calling.outputs import AVERAGED, bare
    from parity.checker.calling.trial import Unclear

    c = report.convention
    assert c is not None
    guessed = [n for n, w in c.arguments if w.startswith("value:") and any(
        item.what == n and item.sure == "assumed" for item in c.items)]
    if guessed and c.word("scale") is None and not any(item.sure == "given" for item in c.items):
        values = ", ".join(f"{n} as {dict(c.arguments)[n].removeprefix('value:')}" for n in guessed)
        raise Unclear(
            f"no argument of {c.name} was found to be a temperature; {values} had to be guessed, and so called it is not the "
            f"paper's loss. Say which is which: --call {c.written} with a word or a value for each, or --set {guessed[0]}=VALUE"
        )
    paths = c.losses.get("fine", ((), ()))[0]
    if len(paths) == 2 and any(item.why == AVERAGED for item in c.items):
        for path in paths:                                # of two that are no two directions one may be meant
            other, _ = judged(worker, replace(c, losses=c.losses | {"fine": ((path,), (1.0,))}), name, edges)
            if other.verdict not in ("unexplained", "cannot_run") and "loss.one_direction" not in other.deviations:
                both = " and ".join(map(bare, paths))
                raise Unclear(
                    f"{c.name} returns two fine-grained losses, {both}: their mean is not the paper's loss, and {bare(path)} "
                    f"alone is known ({other.summary}). Say which is meant: --returns {bare(path)}=fine"
                )


def unnamed(convention: "Convention") -> bool:
    """Whether neither names nor numbers say which arguments are patches and tokens: a difference may be the call's fault."""
    from parity.checker.calling.caller import LAYOUTS, TEXTS
    from parity.checker.calling.convention import supported, verified

    names = [n for n, w in convention.arguments if w in LAYOUTS or w in TEXTS]
    sure = {item.what: item.sure for item in convention.items}
    return bool(names) and all(sure.get(n) == "assumed" for n in names) and not (verified(convention) and supported(convention))


def judged(worker, convention, name, edges=False) -> "tuple[Report, Caller]":
    from parity.checker.calling.caller import Caller
    from parity.checker.diagnosis.diagnose import diagnose
    from parity.checker.page.sheet import Report

    ask = Caller(worker, convention)
    try:
        diagnosis = diagnose(ask, edges)
    except (ArithmeticError, AssertionError, ValueError, LookupError, TypeError) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise CheckerFault(
            f"the checker itself failed on {convention.name}, which is our fault and not yours: "
            f"{type(error).__name__}: {error} at {Path(place.filename).name}:{place.lineno}"
        ) from error
    if diagnosis.verdict == "cannot_run":
        kind, _, words = (diagnosis.error or "").partition(": ")
        told = {"type": kind or "error", "message": words, "lines": [], "call": str(convention)}
        return Report(name, diagnosis, convention, error=told), ask
    return Report(name, with_cls(ask, diagnosis), convention), ask


def with_cls(ask, diagnosis):
    """A [CLS] slot that the global loss reads: the paper has none, it pools the patches.

    With a slot in both sides it is the place of the pooled embeddings: `reading`.
    """
    import numpy as np

    from parity.checker.diagnosis.deviations import Found
    from parity.checker.probes import PROBES

    given = {w for _, w in ask.convention.arguments}
    known = any(f.id == "global.uses_cls" for f in diagnosis.deviations)
    if not given & {"v_cls", "v_pbd_cls"} or given & {"v_bar", "t_cls"} or known:
        return diagnosis
    grads = ask(PROBES["padded"]).grads
    if not any(np.any(grads.get(loss, {}).get("v_bar", 0)) for loss in ("global", "total")):
        return diagnosis
    verdict = diagnosis.verdict if diagnosis.verdict == "unexplained" else "explained"
    note = diagnosis.note.replace("Your global loss equals eq. 1, value and gradients.",
                                  "Your global loss equals eq. 1, except that the image's embedding is the [CLS] token.")
    return replace(diagnosis, deviations=(*diagnosis.deviations, Found("global.uses_cls")), verdict=verdict,
                   conditions=() if verdict != "conditional" else diagnosis.conditions, stage=diagnosis.stage or "global",
                   note=note)


def finished(ask, report) -> "Report":
    """With behaviour and with the stages, theirs beside ours."""
    from parity.checker.diagnosis.behaviour import behaviour
    from parity.checker.page.stages import side_by_side

    if report.error:
        return report
    notes = []
    if any(f.id == "threshold.constant" for f in report.diagnosis.deviations):
        for item in report.convention.items:
            if item.what == "sigma" and item.value.startswith("argument"):
                notes.append(f"sigma: {item.value}; pass 1/P (--sigma 1/P checks it so)")
    seen = behaviour(ask, report.diagnosis)
    return replace(report, behaviour=seen, diagnosis=with_modes(report.diagnosis, seen),
                   stages=tuple(side_by_side(ask, report.diagnosis)), notes=tuple(notes))


def with_modes(diagnosis, behaviour):
    """A module that is the paper's in eval mode alone is that under a condition; a place of padding is said in the headline."""
    found = {f.found.id: f.evidence for f in behaviour.findings}
    if diagnosis.verdict not in ("eq6", "listing1", "conditional"):
        return diagnosis
    if "edge.padding_place" in found:
        diagnosis = replace(diagnosis, note=f"{diagnosis.note} Padding is taken to come last: {found['edge.padding_place']}.")
    if not (said := found.get("edge.train_mode", "")):
        return diagnosis
    base = "listing1" if diagnosis.verdict == "listing1" else diagnosis.base
    return replace(diagnosis, verdict="conditional", base=base, conditions=(*diagnosis.conditions, "eval mode"),
                   note=f"{diagnosis.note} That is so in eval mode; {said.partition(';')[0]}.")


def name_of(target: Any) -> str:
    module, name = getattr(target, "__module__", ""), getattr(target, "__qualname__", "") or type(target).__name__
    return f"{module}:{name}" if module and module != "__main__" else name


def main(command) -> int:
    """The command: print the page, write what was asked for, return the exit code."""
    if not has_torch():
        print(f"sparc-ref check: {NO_TORCH}", file=sys.stderr)
        return 2
    from rich.console import Console

    from parity.checker.calling.trial import Unclear
    from parity.checker.page.sheet import Report, show

    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=112)
    if command.export is not None:
        from parity.checker.exchange import export

        with one_thread():
            print(export(command.export))
        return 0
    if not command.target:
        print("sparc-ref check: expected an implementation: pkg.module:name, file.py, file.py:name or a folder of answers",
              file=sys.stderr)
        return 2
    try:
        report = check(command.target, **command.options())
    except Unclear as unclear:
        print(f"sparc-ref check: {visible(unclear)}", file=sys.stderr)
        return 2
    except ValueError as error:
        raise ValueError(visible(error)) from error
    if command.json is not None:
        command.json.parent.mkdir(parents=True, exist_ok=True)
        command.json.write_text(report.to_json())
    if not isinstance(report, Report):
        print(f"{report}\n  {report.summary}")
        if command.html is not None and str(command.html) != "none":
            print(f"sparc-ref check: --html {command.html}: no page is made of a batch; --json writes the report",
                  file=sys.stderr)
        return report.exit_code
    show(report, console)
    if report.error and report.error["type"] == "NotFound":  # a name that is wrong: nothing was looked at
        pass
    elif command.html is None or str(command.html) != "none":
        page = report.write_html(command.html or Path("runs/check") / f"{slug(report.target)}.html")
        print(f"  {page}")
    print(f"  {report.summary}")
    return report.exit_code


def slug(text: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in text).strip("_")[-60:] or "check"
