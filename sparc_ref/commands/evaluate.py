"""`sparc-ref evaluate`: every measure that a data set supports, or one of the paper's tasks over a list of data sets."""

import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import tyro

from sparc_ref.run.files import check_output, write_output

OWN = {name: f"sparc_ref.tasks.{name}" for name in ("classification", "retrieval", "faithfulness", "segmentation")}
TASKS = OWN | {point.name: point.value for point in sorted(entry_points(group="sparc_ref.tasks"))}
KEPT = "evaluation"                                       # the folder of a run in which results of tasks are kept

if TYPE_CHECKING:
    TaskName: TypeAlias = str
else:
    TaskName = Literal[tuple(TASKS)]


def otherwise(metavar, hint):
    """An option that has no value by default: how it is written, and what happens without it."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {hint})")


Data = "KIND[:PATH][?OPTIONS] [...]"


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained model: retrieval, and where there are masks segmentation and localisation; the grounding gap always.

    With --task one of the paper's tasks, on one or many data sets, each kept as soon as it is measured; the same command goes
    on where it stopped, and `sparc-ref report --tables RUN ...` lays what was kept out like the paper's tables. Data is then
    named as layout:path[?option=value&...], e.g. "voc:VOCdevkit/VOC2012?average=dataset"; docs/tasks has the layouts.
    """

    checkpoint: Path                # a checkpoint or a run directory
    # what to measure on, as in train; with --task a layout of that task
    data: Annotated[tuple[str, ...], otherwise(Data, "the run's validation data, else its own data")] = ()
    # one of the paper's tasks
    task: Annotated[TaskName | None, otherwise("{" + ",".join(TASKS) + "}", "all that the data support")] = None
    # of drawn scenes: train, validation, test, unseen; of pictures: train, validation, test, heldout
    split: Annotated[str | None, otherwise("STR", "test, where --data or the run names none")] = None
    # examples at most
    limit: Annotated[int | None, otherwise("INT", "1000 of scenes, all captioned pictures, all of a task")] = None
    batch: int = 64                 # examples at a time
    shards: int = 4                 # parts of a batch side by side
    json: Annotated[Path | None, otherwise("PATH", "none")] = None  # also write the numbers here
    # of a task: where results and pictures are kept
    out: Annotated[Path | None, otherwise("DIR", "evaluation/ in the checkpoint's run")] = None
    again: bool = False             # of a task: measure again what was kept

    @property
    def needs(self) -> str:
        """The extra that brings what this task imports."""
        return "run" if self.task is None or self.task in OWN else "evaluation"


def run_evaluate(command: Evaluate) -> int:
    """Carry the command out.   -> exit status: 2 where a data set of several could not be measured"""
    for name in ("limit", "batch", "shards"):
        if (value := getattr(command, name)) is not None and value < 1:
            raise ValueError(f"--{name}: expected at least 1, got {value}")
    check_output("--json", command.json)
    if command.task:
        return run_task(command)
    if command.out or command.again:
        raise ValueError(f"--{'out' if command.out else 'again'}: is of a task; name one with --task: {', '.join(TASKS)}")
    measure_all(command)
    return 0


def measure_all(command: Evaluate) -> None:
    """Everything that each data set supports: one table per data set; JSON where asked for."""
    from sparc_ref.commands.report import measure
    from sparc_ref.run.rundir import load_run, objective_of, sources_of
    from sparc_ref.run.sources import check_split, has_splits, open_source, trained_on, with_options
    from sparc_ref.show.results import grounding, numbers_table

    if command.split:
        check_split(command.split, command.data)
    params, config, tokenizer, found = load_run(command.checkpoint)
    sources = {} if command.data else sources_of(found)
    own = sources.get("measured", {}).values()
    own = dict.fromkeys(with_options(spec, split=command.split) if command.split and has_splits(spec) else spec for spec in own)
    results = {}
    for spec in command.data or own:
        dataset = open_source(spec, config.image_size, split=command.split or "test")
        if hasattr(dataset, "report"):
            print(f"{spec}: {dataset.report}")
        numbers = measure(params, config, tokenizer, spec, dataset, command.limit, command.batch, command.shards,
                          objective_of(found.record["config"], found.path))
        results[f"{spec} {dataset.name}"] = numbers
        own_words = ", which it was trained on" if sources and trained_on(spec, sources) else ""
        print(f"{found.path} on {dataset.name}, {numbers['images']:.0f} examples{own_words}: {spec}")
        print(numbers_table(numbers))
        if said := grounding(numbers):
            print(said)
    if command.json:
        content = {"checkpoint": str(found.path), "step": found.step, "results": results}
        write_output(command.json, json.dumps(content, indent=1))


def run_task(command: Evaluate) -> int:
    """One of the paper's tasks over the data sets that were named, each kept as soon as it is measured."""
    from sparc_ref.commands.report import home
    from sparc_ref.tasks import result
    from sparc_ref.tasks.spec import absolute, check_spec, open_data

    if command.split:
        raise ValueError("--split: is not of a task; its layouts take a split as an option: KIND:PATH?split=test")
    if not command.data:
        raise ValueError(f"--data: expected what to measure {command.task} on, got nothing; see docs/tasks/{command.task}.md")
    assert command.task
    task = load_task(command.task)
    for spec in command.data:                             # a mistyped name shows before anything is measured
        check_spec(task, spec)
    model = task.open_model(command.checkpoint, batch=command.batch, shards=command.shards)
    out = command.out or home(command.checkpoint) / KEPT
    out.mkdir(parents=True, exist_ok=True)
    print(f"{command.task} with {model.name}; results are kept in {out}")
    results, failed = [], []
    for n, spec in enumerate(command.data, 1):
        about = {"task": command.task, "data": absolute(spec), "limit": command.limit, "checkpoint": model.name,
                 "identity": model.identity, "trained_on": list(getattr(model, "trained_on", ()))}
        place = out / f"{command.task}-{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]}"
        file = place.with_suffix(".json")
        if len(command.data) > 1:
            print(f"[{n}/{len(command.data)}] {spec}")
        kept = file.exists() and not command.again
        try:
            if kept:
                found, _ = result.read(file)
            else:
                data, protocol = open_data(task, spec)
                place.mkdir(exist_ok=True)
                found = task.measure(model, data, protocol, limit=command.limit, pictures=place, say=print)
        except (ValueError, OSError) as error:
            if len(command.data) == 1:
                raise
            print(f"not measured: {error}")
            failed.append(f"{spec}: {error}")
            continue
        if kept:
            print(f"kept from before: {file}")
        else:
            found = replace(found, data=about["data"])
            result.write(file, found, about)
        results.append(found)
        print(told(found, place))
    if command.json:
        write_output(command.json, json.dumps({"checkpoint": model.name, "results": [asdict(r) for r in results],
                                               "not measured": failed}, indent=1))
    if failed:
        print(f"{len(failed)} of {len(command.data)} could not be measured:", *failed, sep="\n  ")
    return 2 if failed else 0


def load_task(name: str) -> ModuleType:
    """The module of a task.   ModuleNotFoundError where a package is missing; Evaluate.needs says what brings it"""
    return importlib.import_module(TASKS[name])


def told(found: Any, pictures: Path) -> str:
    """A result as lines of text: every number with its chance, what was left out, the protocol, the pictures."""
    from sparc_ref.show.results import visible

    lines = [f"{found.task} on {found.name}: {found.examples} examples, {found.data}"]
    width = max([len(name) for name in found.numbers], default=0)
    for name, x in found.numbers.items():
        chance = f"  chance {shown(found.chance[name])}" if name in found.chance else ""
        lines.append(f"  {name:{width}}  {shown(x):>8}{chance}")
    lines += [f"  {cause}: {n:,}" for cause, n in found.counts.items()]
    lines.append("  " + ", ".join(f"{name}={value}" for name, value in found.protocol.items()))
    lines += [f"  {note}" for note in found.notes]
    lines += [f"  {pictures / name}" for name in found.pictures]
    return "\n".join(visible(line) for line in lines)


def shown(x: float) -> str:
    return f"{x:.4f}" if abs(x) < 10 else f"{x:,.2f}"


def results_in(run: Path) -> list[tuple[Any, Mapping[str, Any]]]:
    """The results that a run, its `evaluation` folder or any folder holds.   ValueError where there are none"""
    from sparc_ref.commands.report import home
    from sparc_ref.tasks import result

    folders = [run, run / KEPT, home(run) / KEPT]
    for folder in folders:
        files = sorted(f for name in TASKS for f in folder.glob(f"{name}-*.json")) if folder.is_dir() else []
        if files:
            return [result.read(file) for file in files]
    raise ValueError(f"{run}: expected results of sparc-ref evaluate --task in it or in {KEPT}/, found none; "
                     "measure first: sparc-ref evaluate --checkpoint RUN --task ... --data ...")


def by_checkpoint(name: str, kept: Sequence[tuple[Any, Mapping[str, Any]]]) -> dict[str, Any]:
    """What is kept of a run; where several checkpoints of it were measured, of each under its own name."""
    rows: dict[tuple[str, str], list] = {}
    for found, about in kept:
        rows.setdefault((str(about.get("checkpoint")), str(about.get("identity"))), []).append((found, about))
    if len(rows) == 1:
        return {name: kept}
    steps = [Path(place).name for place, _ in rows]
    return {f"{name} {Path(place).name}" + f" {identity[:8]}" * (steps.count(Path(place).name) > 1): rows[place, identity]
            for place, identity in sorted(rows)}


def run_tables(runs: Sequence[Path], data: Sequence[str], limit: int | None, out: Path | None) -> Path:
    """Write the page of tables of what was kept of these runs, and print them.   -> its path"""
    from sparc_ref.commands.report import home
    from sparc_ref.tasks.tables import as_page, as_text

    if not runs:
        raise ValueError("runs: expected at least one run directory, got none")
    if data or limit is not None:
        raise ValueError(f"--{'data' if data else 'limit'}: is not of --tables, which measures nothing; "
                         "measure with sparc-ref evaluate --task")
    short = [home(run).resolve().name for run in runs]
    models: dict[str, Any] = {}
    for name, run in zip(short, runs):
        models |= by_checkpoint(name if short.count(name) == 1 else str(run), results_in(run))
    path = out or (home(runs[0]) if home(runs[0]).is_dir() else Path()) / "tables.html"
    check_output("--out", path)
    write_output(path, as_page(models))
    print(as_text(models))
    print(f"Open {path}")
    return path
