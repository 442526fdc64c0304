"""The demo: SPARC and the global loss alone, from the same weights and batches, on pictures made here, in minutes on two cores.

Writes into the run directory, one folder per model (and per seed, with several)
    sparc/, global/     configuration, metrics, tokenizer, checkpoints (see rundir.py), final.json: the final numbers
    seeds.json          with several seeds: every number of every seed, means and standard deviations
    report.html         everything a person looks at, in one file
The recipes below were chosen on validation pictures; the numbers are those of test pictures, and on drawn scenes also of pairs
that training never shows. (A mosaic's material is one word: what training never shows is a word that was never trained.)
"""

import datetime
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from sparc_ref.commands.report import FREE, MODELS, environment, training_seconds, write_page
from sparc_ref.model import PRESETS
from sparc_ref.run.files import write_whole
from sparc_ref.run.sources import remembered, with_options
from sparc_ref.run.train import TrainConfig, train

WORLDS = {  # data as on a command line, what both models are measured on, the page's title, what is said of it
    "mosaic": ("mosaic", {"": "test"}, "SPARC on mosaics: every region has a name, every word names a region",
               "Both models have one path from patches to embeddings (h_v none), so neither is read through a head that it did "
               "not train."),
    "drawn": ("drawn?style=short", {"": "test", "unseen": "unseen"},
              "SPARC on drawn scenes: objects on a ground without a name", "What fails here, and why, is in docs/learning.md."),
}


@dataclass(frozen=True)
class DemoConfig:
    """Train SPARC and, from the same initial weights and batches, the global loss alone; write report.html."""

    out: Path = Path("runs/demo")   # the run directory
    seed: int = 0                   # initial weights, order of the data
    seeds: int = 1                  # how many seeds, from --seed on; their spread goes into the report and seeds.json
    # updates of each model
    steps: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: 300, of drawn 400)")] = None
    examples: int = 500             # held-out pictures that the final numbers are measured on
    checkpoint_every: int = 100     # updates between checkpoints
    data: Literal["mosaic", "drawn"] = "mosaic"  # mosaics, where everything has a name; scenes on a ground without one
    resume: bool = False            # continue a demo that was stopped; start it where there is none
    overwrite: bool = False         # delete the demo that --out holds


def recipe(config: DemoConfig) -> tuple:
    """Data, model and training of the demo.   -> train set, validation set, tokenizer, SPARCConfig, TrainConfig for a seed

    docs/learning.md says what else was tried.
    """
    from sparc_ref.data import DrawnScenes, MosaicScenes, WordTokenizer

    mosaic = config.data == "mosaic"
    scenes: Any = MosaicScenes(size=48) if mosaic else DrawnScenes(style="short")
    tokenizer = WordTokenizer(scenes.vocabulary(), eos=False)
    model = replace(PRESETS["tiny"], image_size=scenes.size, patch_size=scenes.size // 8, vocab_size=tokenizer.vocab_size,
                    max_tokens=12, text_positions="none", text_depth=0, h_v="none", lambda_f=0.5, mlp_ratio=2 if mosaic else 4)
    steps = steps_of(config)
    training = TrainConfig(steps=steps, lr=2e-3, warmup=min(50, steps // 4), attention_start=0.0,
                           eval_every=max(1, steps // 4), eval_limit=192, seed=config.seed,
                           checkpoint_every=config.checkpoint_every, log_every=10)
    return scenes, replace(scenes, split="validation", count=192), tokenizer, model, training


def steps_of(config):
    """Updates of each model."""
    return config.steps or {"mosaic": 300, "drawn": 400}[config.data]


def demo(config: DemoConfig, again: str = "sparc-ref demo --resume", say: Callable[[str], Any] = print) -> Path:
    """Train and measure both models for every seed, write report.html and print its table.   -> path of the report"""
    for name, least in (("seeds", 1), ("examples", 2), ("steps", 1)):
        if (value := getattr(config, name)) is not None and value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    import sparc_ref.show.report  # noqa: F401  a missing package shows now, not after the training

    folders = {seed: config.out if config.seeds == 1 else config.out / f"seed_{seed:02d}"
               for seed in range(config.seed, config.seed + config.seeds)}
    check_folders(config, folders.values())
    began, finals = time.perf_counter(), []
    for seed, folder in folders.items():
        finals.append({key: one_model(replace(config, seed=seed), key, folder, again, say) for key in MODELS})
    seeds = None
    if config.seeds > 1:
        seeds = seeds_summary(config, finals)
        write_json(config.out / "seeds.json", seeds)
    first, path = folders[config.seed], config.out / "report.html"
    write_page(
        path, {name: first / key for key, (name, _) in MODELS.items()}, measured_on(config), title=WORLDS[config.data][2],
        finals={MODELS[key][0]: numbers for key, numbers in finals[0].items()}, seeds=seeds, say=say,
        command=f"{started(config)} --seed {config.seed} --steps {steps_of(config)} --examples {config.examples}",
        notes=("Both models started from the same weights and saw the same batches in the same order.",
               "The recipe was chosen on validation pictures; the numbers are those of test pictures.", WORLDS[config.data][3]),
    )
    say(f"{time.perf_counter() - began:.0f} s in all. Open {path}")
    return path


def check_folders(config, folders):
    """Refuse before anything is written or deleted: a folder that holds other things and no demo, what no run may replace."""
    from sparc_ref.run.files import kind
    from sparc_ref.run.inventory import entries
    from sparc_ref.run.rundir import check_out

    present = [p.name for p in entries(config.out)]
    if kind(config.out) == "file" or (present and not any(re.fullmatch(rf"{'|'.join(MODELS)}|seed_\d+", n) for n in present)):
        raise ValueError(f"--out {config.out}: neither empty nor a demo (it holds {', '.join(present[:3])}); choose another. "
                         "Nothing in it was touched")
    for folder in folders:
        for path in (folder, *(folder / key for key in MODELS)):
            if path != config.out and kind(path) == "link":
                raise ValueError(f"{path} is a link, and a run writes through none: put the real thing there")
        for key in MODELS:
            check_out(folder / key, config.resume, config.overwrite)


def measured_on(config):
    """{name: data, as on a command line}"""
    data, splits, *_ = WORLDS[config.data]
    return {name: with_options(data, split=split, count=str(config.examples)) for name, split in splits.items()}


def started(config):
    """The command that this demo is, without its numbers."""
    return "sparc-ref demo" + (f" --data {config.data}" if config.data != DemoConfig.data else "")


def one_model(config, key, folder, again, say):
    """Train one of the two models and measure it on held-out pictures.   -> flat dict of numbers"""
    from sparc_ref.run.measure import evaluate
    from sparc_ref.run.rundir import read_metrics
    from sparc_ref.run.train import one_blas_thread

    scenes, validation, tokenizer, model, training = recipe(config)
    model = replace(model, **MODELS[key][1])
    say(f"--- {MODELS[key][0]}, seed {config.seed}")
    params = train(model, training, [scenes], tokenizer, folder / key, validation={"validation": validation},
                   resume=config.resume, overwrite=config.overwrite, again=again, say=say,
                   sources=remembered([WORLDS[config.data][0]], measured=measured_on(config)))
    numbers = {"seconds": training_seconds(read_metrics(folder / key / "metrics.jsonl"))}
    with one_blas_thread(training.shards > 1):
        for name, split in WORLDS[config.data][1].items():
            held_out = replace(scenes, split=split, count=config.examples)
            found = evaluate(params, model, held_out, tokenizer, shards=training.shards)
            numbers |= {f"{name}_{key}" if name else key: value for key, value in found.items()}
    write_json(folder / key / "final.json", numbers)
    return numbers


def recipe_of(config):
    """Everything that decides the numbers except the seed, JSON-able: what a measured spread belongs to."""
    scenes, _, tokenizer, model, training = recipe(config)
    recipe_ = {"scenes": scenes.describe(), "tokenizer": tokenizer.describe(), "model": asdict(model),
               "training": {k: v for k, v in asdict(training).items() if k not in FREE},
               "examples": config.examples}
    return json.loads(json.dumps(recipe_))


def seeds_summary(config, finals):
    """Means and standard deviations over seeds, every single number, and where they come from."""
    spread = {}
    for key in MODELS:
        names = sorted(set.intersection(*(set(f[key]) for f in finals)))
        values = {name: [f[key][name] for f in finals] for name in names}
        spread[key] = {n: [float(np.mean(x)), float(np.std(x, ddof=1)), len(x)] for n, x in values.items()}
    return {"recipe": recipe_of(config), "spread": spread, "finals": finals, "measured": datetime.date.today().isoformat(),
            "command": f"{started(config)} --seed {config.seed} --seeds {config.seeds} --steps {steps_of(config)}"
                       + f" --examples {config.examples}" * (config.examples != DemoConfig.examples),
            **environment()}


def write_json(path, content):
    write_whole(path, json.dumps(content, indent=1))
