"""The demo: SPARC and the global loss alone, from the same weights and batches, on scenes drawn here, in minutes on two cores.

Writes into the run directory, one folder per model (and per seed, with several)
    sparc/, global/     configuration, metrics, tokenizer, checkpoints (see rundir.py), final.json: the final numbers
    seeds.json          with several seeds: every number of every seed, means and standard deviations
    report.html         everything a person looks at, in one file
The recipe below was chosen on validation scenes; the numbers are those of test scenes, and of pairs that training never shows.
"""

import datetime
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sparc_ref.commands.report import FREE, MODELS, environment, training_seconds, write_page
from sparc_ref.model import PRESETS
from sparc_ref.run.files import write_whole
from sparc_ref.run.sources import remembered
from sparc_ref.run.train import TrainConfig, train

DATA = "drawn?style=short"                                # as on a command line: what recipe() trains on
SPLITS = {"": "test", "unseen": "unseen"}                 # what both models are measured on


@dataclass(frozen=True)
class DemoConfig:
    """Train SPARC and, from the same initial weights and batches, the global loss alone on drawn scenes; write report.html."""

    out: Path = Path("runs/demo")   # the run directory
    seed: int = 0                   # initial weights, order of the data
    seeds: int = 1                  # how many seeds, from --seed on; their spread goes into the report and seeds.json
    steps: int = 400                # updates of each model
    examples: int = 500             # held-out scenes that the final numbers are measured on
    checkpoint_every: int = 100     # updates between checkpoints
    resume: bool = False            # continue a demo that was stopped; start it where there is none
    overwrite: bool = False         # delete the demo that --out holds


def recipe(config: DemoConfig) -> tuple:
    """Data, model and training of the demo.   -> train set, validation set, tokenizer, SPARCConfig, TrainConfig for a seed

    docs/learning.md says what else was tried.
    """
    from sparc_ref.data import DrawnScenes, WordTokenizer

    scenes = DrawnScenes(style="short")
    tokenizer = WordTokenizer(scenes.vocabulary(), eos=False)
    model = replace(PRESETS["tiny"], vocab_size=tokenizer.vocab_size, max_tokens=12, text_positions="none", text_depth=0,
                    h_v="none", lambda_f=0.5)
    training = TrainConfig(steps=config.steps, lr=2e-3, warmup=min(50, config.steps // 4), attention_start=0.0,
                           eval_every=max(1, config.steps // 4), eval_limit=192, seed=config.seed,
                           checkpoint_every=config.checkpoint_every, log_every=10)
    return scenes, replace(scenes, split="validation", count=192), tokenizer, model, training


def demo(config: DemoConfig, again: str = "sparc-ref demo --resume", say: Callable[[str], Any] = print) -> Path:
    """Train and measure both models for every seed, write report.html and print its table.   -> path of the report"""
    for name, least in (("seeds", 1), ("examples", 2), ("steps", 1)):
        if getattr(config, name) < least:
            raise ValueError(f"{name}: expected at least {least}, got {getattr(config, name)}")
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
        path, {name: first / key for key, (name, _) in MODELS.items()}, measured_on(config), title="SPARC on drawn scenes",
        finals={MODELS[key][0]: numbers for key, numbers in finals[0].items()}, seeds=seeds, say=say,
        command=f"sparc-ref demo --seed {config.seed} --steps {config.steps} --examples {config.examples}",
        notes=("Both models started from the same weights and saw the same batches in the same order.",
               "The recipe was chosen on validation scenes; the numbers are those of test scenes."),
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
    return {name: f"{DATA}&split={split}&count={config.examples}" for name, split in SPLITS.items()}


def one_model(config, key, folder, again, say):
    """Train one of the two models and measure it on held-out scenes.   -> flat dict of numbers"""
    from sparc_ref.run.measure import evaluate
    from sparc_ref.run.rundir import read_metrics
    from sparc_ref.run.train import one_blas_thread

    scenes, validation, tokenizer, model, training = recipe(config)
    model = replace(model, **MODELS[key][1])
    say(f"--- {MODELS[key][0]}, seed {config.seed}")
    params = train(model, training, [scenes], tokenizer, folder / key, validation={"validation": validation},
                   resume=config.resume, overwrite=config.overwrite, again=again, say=say,
                   sources=remembered([DATA], measured=measured_on(config)))
    numbers = {"seconds": training_seconds(read_metrics(folder / key / "metrics.jsonl"))}
    with one_blas_thread(training.shards > 1):
        for name, split in SPLITS.items():
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
            "command": f"sparc-ref demo --seed {config.seed} --seeds {config.seeds} --steps {config.steps}",
            **environment()}


def write_json(path, content):
    write_whole(path, json.dumps(content, indent=1))
