"""A page of any run: its numbers, measured on the data that it remembers, heat maps, curves, configuration.

The demo ends in the same page, with two runs side by side and their spread over seeds.
"""

import importlib.resources
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparc_ref import __version__
from sparc_ref.run import checkpoint
from sparc_ref.run.rundir import CHECKPOINTS, METRICS, load_run, objective_of, read_metrics, sources_of
from sparc_ref.run.sources import has_splits, open_source, trained_on
from sparc_ref.run.telling import as_word
from sparc_ref.run.train import one_blas_thread

MODELS: dict[str, tuple[str, dict]] = {"sparc": ("SPARC", {}), "global": ("global loss only", {"lambda_f": 0.0})}
SPREADS = {"mosaic": "demo_spread.json", "drawn": "demo_spread_drawn.json"}   # package data, a measured seeds.json each
FREE = ("seed", "checkpoint_every", "keep")               # options of a training that a spread over seeds does not depend on
GROUPS = {"unseen": "Unseen colour-shape pairs"}          # what further data is called on the page; others by their spec


def report(
    runs: Sequence[str | os.PathLike], data: Sequence[str] = (), out: str | os.PathLike | None = None, limit: int | None = None,
    say: Callable[[str], Any] = print,
) -> Path:
    """Measure runs and write their page.   -> its path

    runs    run directories, side by side on the page; a demo's directory stands for the runs in it
    data    what to measure all of them on, as on the command line [what the first one remembers]
    out     the page [report.html in the first run's directory]
    limit   examples at most [1000 of scenes, all of captioned pictures]
    """
    if not runs:
        raise ValueError("runs: expected at least one run directory, got none")
    folders: dict[str, Path] = {}
    for run in runs:
        for name, folder in runs_in(Path(run)).items():
            folders[name if name not in folders else str(folder)] = folder
    path = Path(out) if out is not None else home(Path(runs[0])) / "report.html"
    if not path.parent.is_dir():
        raise ValueError(f"out: expected a file in an existing folder, got {path}")
    measured = {str(i) if i else "": spec for i, spec in enumerate(data)}
    command = shlex.join(["sparc-ref", "report", *map(as_word, runs), *(["--data", *data] if data else []),
                          *(["--limit", str(limit)] if limit is not None else [])])
    write_page(path, folders, measured, limit=limit, command=command, say=say)
    say(f"Open {path}")
    return path


def runs_in(folder: Path) -> dict[str, Path]:
    """The runs that a directory stands for, by name: itself, or those of a demo.   CheckpointError where there is none"""
    demo = {name: folder / key for key, (name, _) in MODELS.items() if checkpoint.steps(folder / key / "checkpoints")}
    if demo:
        return demo
    found = checkpoint.find(folder)
    named = [home(folder).resolve().name, *[found.name] * (found == folder)]
    return {" ".join(named): folder}


def home(path: Path) -> Path:
    """The run directory of a run or checkpoint; of a demo, its own; of a checkpoint that was put elsewhere, where it lies."""
    try:
        found = checkpoint.find(path)
    except checkpoint.CheckpointError:
        return path
    return found.parent.parent if found.parent.name == CHECKPOINTS else found.parent


def write_page(
    path: Path, folders: Mapping[str, Path], measured: Mapping[str, str] | None = None, *, limit: int | None = None,
    finals: Mapping[str, Mapping] | None = None, seeds: Mapping[str, Any] | None = None, title: str = "",
    notes: Sequence[str] = (), command: str = "", say: Callable[[str], Any] = print,
) -> None:
    """Write the page of these runs and print its table.

    measured  name -> data, as on a command line; the first is shown whole, of the others a few numbers [the first run's]
    finals    run -> numbers that were measured already, those of further data under "<its name>_<number>"
    seeds     a seeds.json, used where it was measured for these very runs [those that ship with the package]
    """
    from sparc_ref.run.examples import explain_examples
    from sparc_ref.show.report import DemoReport, Run, demo_report, print_results
    from sparc_ref.show.results import NUMBERS, Number

    opened = {name: load_run(folder) for name, folder in folders.items()}
    _, config, _, first = next(iter(opened.values()))
    measured = dict(measured or sources_of(first)["measured"])
    key, *others = measured
    spreads = [seeds] if seeds else [shipped_spread(world) for world in SPREADS]
    used: Mapping[str, Any] = {}
    chosen: list[tuple[int, str]] = []
    data, runs = {}, []
    for name, (params, config, tokenizer, found) in opened.items():
        for k, spec in measured.items():
            if (k, config.image_size) not in data:
                data[k, config.image_size] = open_source(spec, config.image_size, split="test")
        dataset, record, place = data[key, config.image_size], found.record.get("config", {}), home(found.path)
        objective = objective_of(record, found.path)
        metrics = read_metrics(place / METRICS) if (place / METRICS).is_file() else []
        if finals:
            numbers = dict(finals[name])
        else:
            say(f"measuring {name} on {dataset.name}")
            numbers = {"seconds": training_seconds(metrics)} if metrics else {}
            for k, spec in measured.items():
                got = measure(params, config, tokenizer, spec, data[k, config.image_size], limit, objective=objective)
                numbers |= {f"{k}_{n}" if k in others else n: x for n, x in got.items()}
        chosen = chosen or worth_showing(params, config, dataset, tokenizer, objective)
        spread = {}
        for known in spreads:
            if found_spread := spread_of(record, numbers.get("images"), known):
                spread, used = found_spread, known
        files = {"configuration": place / "config.json", "metrics": place / METRICS, "checkpoint": found.path,
                 "numbers": place / "final.json"}
        runs.append(Run(
            name=name, config=record["model"] | record.get("train", {}) | record.get("objective", {}), metrics=metrics,
            final=numbers, spread=spread,
            examples=explain_examples(params, config, dataset, tokenizer, [i for i, _ in chosen], objective=objective),
            files={what: os.path.relpath(file, path.parent) for what, file in files.items() if file.exists()},
        ))
    dataset, record = next(iter(data.values())), first.record["config"]
    if "sources" in record and trained_on(measured[key], record["sources"]):
        notes = [*notes, "The model was trained on them: the numbers say what it memorised, not what others would give."]
    began = record.get("sources", {}).get("command", "")
    began += f" --out {shlex.quote(as_word(home(first.path)))}" if began else ""
    further = [Number(f"{k}_{n.key}", n.label, GROUPS.get(k, measured[k]), n.kind, n.better, n.chance)
               for k in others for n in NUMBERS if n.key in ("t2i_r1", "i2t_r1", "pointing", "grounding_gap")]
    page = DemoReport(
        title=title or f"{', '.join(folders)} on {dataset.name}", runs=runs, evaluated_on=dataset.describe(), notes=notes,
        trained_on=next(iter(record.get("data", {}).values()), {}), environment=environment(),
        reproduce=[c for c in (began, command) if c],
        numbers=(*without_repeats(NUMBERS[:-1], runs), *further, NUMBERS[-1]), origin=origin(used) if used else "",
        shown=[why.format(name=next(iter(folders))) for _, why in chosen],
    )
    demo_report(path.parent, page, path.name)
    print_results(page)


def measure(params, config, tokenizer, spec, dataset, limit=None, batch=64, shards=4, objective=None) -> dict[str, float]:
    """measure.evaluate on a data set that a command line named.      limit [1000 of scenes, all of captioned pictures]"""
    from sparc_ref.run.measure import evaluate

    limit = min(len(dataset), 1000 if has_splits(spec) else len(dataset)) if limit is None else limit
    with one_blas_thread(shards > 1):
        return evaluate(params, config, dataset, tokenizer, limit, batch, shards=shards, objective=objective)


def without_repeats(numbers, runs):
    """The numbers without those of segmentation that repeat an earlier one in all runs, as where every pixel has a name."""
    kept: list = []
    for number in numbers:
        others = [other.key for other in kept if other.group == number.group == "Segmentation"]
        if not any(all(same(run.final, number.key, key) for run in runs) for key in others):
            kept.append(number)
    return kept


def same(final, one, other):
    """Whether two numbers are known, above 0 and equal, as are their chances."""
    pairs = [(final.get(one + end), final.get(other + end)) for end in ("", "_chance")]
    return all(a is not None and b is not None and a > 0 and abs(a - b) < 5e-5 for a, b in pairs)


def worth_showing(params, config, dataset, tokenizer, objective=None, most=6, among=100) -> list[tuple[int, str]]:
    """(example, why): the first with three regions or more; then the worst of them for this model, then those that follow.

    The worst: where the least weight lies in the words' own regions, of a word in proportion to the share of the picture.
    Where there are no regions, the first examples.
    """
    from sparc_ref.evaluate.grouping import queries
    from sparc_ref.run.examples import explain_examples

    first = first_to_show(dataset, among)
    if not first or len(dataset[first[0]].regions) < 3:
        return [(i, "") for i in first[:most]]
    lift = []
    for e in explain_examples(params, config, dataset, tokenizer, first, objective=objective):
        assert e.masks is not None
        asked = queries(e.weights[None], e.objects[None], e.masks[None], e.grid)
        lift.append(np.mean(asked["mass"] / asked["mass_chance"]) if len(asked["mass"]) else np.inf)
    worst = first[int(np.argmin(lift))]
    why = {first[0]: f"the first of {dataset.name} with three regions or more."}
    why |= {worst: f"of the {len(first)} such pictures among the first {min(len(dataset), among)} the one in which {{name}} "
                   "has most trouble: the least weight in the words' own regions, for their size."}
    order = list(dict.fromkeys([first[0], worst, *first]))[:most]
    return [(i, why.get(i, "")) for i in order]


def first_to_show(dataset, among=100) -> list[int]:
    """Which of the first examples have three regions or more; all of them where none has."""
    first = range(min(len(dataset), among))
    return [i for i in first if len(dataset[i].regions) >= 3] or list(first)


def training_seconds(metrics) -> float:
    """Seconds of all updates, from the mean of those that were logged; evaluation and checkpoints are not in it."""
    rows = [r for r in metrics if r["kind"] == "train"]
    return float(np.mean([r["seconds"] for r in rows]) * max(r["step"] for r in rows)) if rows else 0.0


# --------------------------------------------------------------------------------------------- the spread over seeds


def shipped_spread(world: str) -> dict:
    """The seeds.json that comes with the package for the demo on these pictures; {} where there is none."""
    file = importlib.resources.files(__package__) / SPREADS[world]
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def spread_of(record: Mapping, examples: float | None, seeds: Mapping) -> dict[str, tuple[float, float, int]]:
    """{number: (mean, sd, seeds)} of a run, if `seeds` was measured with its very model, data and training; else {}.

    record: what the run wrote into config.json; examples: how many it was measured on.
    """
    recipe = seeds.get("recipe", {})
    training = {k: x for k, x in record.get("train", {}).items() if k not in FREE}
    data = [{k: x for k, x in d.items() if not k.startswith("sha256")} for d in record.get("data", {}).values()]
    if (examples, training, data, record.get("tokenizer")) != (
            recipe.get("examples"), recipe.get("training"), [recipe.get("scenes")], recipe.get("tokenizer", {}).get("hash")):
        return {}
    key = next((key for key, (_, changes) in MODELS.items() if record["model"] == recipe["model"] | changes), "")
    return {number: (x[0], x[1], x[2]) for number, x in seeds["spread"].get(key, {}).items()}


def origin(seeds: Mapping) -> str:
    """Where a spread comes from."""
    when = f" on {seeds['measured']}" if seeds.get("measured") else ""
    return f"measured{when} by `{seeds['command']}`, sparc_ref {seeds['sparc_ref']}, {seeds['machine']}"


def environment() -> dict[str, str]:
    """Versions and the machine."""
    from sparc_ref.backend import cores

    return {"sparc_ref": __version__, "python": platform.python_version(), "numpy": np.__version__,
            "machine": f"{cores()} cores of {platform.machine()}, {sys.platform}"}
