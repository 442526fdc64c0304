"""The trainer as it is started: whole runs of its command line, on one process and on ranks, against the reference's updates.

Everything between the command line and the files is on trial: settings, readers, the order of the data, DDP and FSDP2,
accumulation, checkpointed activations, chunks, compiled blocks, the optimiser, metrics and the export.  Both start from the
same weights; the reference draws its batches by sparc_ref.data.Batches, the trainer by its own.
"""

import contextlib
import io
import json
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from parity.ladder.rungs.setup import NotRun, Row, Setup
from parity.ladder.rungs.training import pooled, reference_training
from parity.ladder.rungs.whole import MARGIN, dither, nudge, random_params, rows, sizes
from parity.vectors import budgets
from sparc_ref.data import Batches, DrawnScenes, WordTokenizer
from sparc_ref.model import PRESETS, SPARCConfig

COUNT = 3                           # updates; the batches after two of them belong to the next epoch
BATCH = 8                           # what 1, 2 and 4 ranks divide
SCENES = "drawn?count=20&captions=2&style=short"
CHUNKED = "--form chunked --chunk 3 --fine-chunk 3"
STREAM = "--precision bf16_stream"
ALONE = {"": "", "2 parts, checkpointed, chunked": f"--accumulate 2 --checkpoint-activations {CHUNKED}", "bf16 stream": STREAM}
COMPILED = {"compiled": "--compile"}
OVER_RANKS = {
    "ddp": "--strategy ddp",
    "fsdp": "--strategy fsdp",
    "ddp, 2 parts, chunked": f"--strategy ddp --accumulate 2 {CHUNKED}",
    "fsdp, 2 parts, checkpointed": "--strategy fsdp --accumulate 2 --checkpoint-activations",
    "ddp, bf16 stream": f"--strategy ddp {STREAM}",
    "fsdp, bf16 stream, checkpointed": f"--strategy fsdp --checkpoint-activations {STREAM}",
}
PRECISION = {"float64": "float64", "float32": "float32", "mixed": "bf16"}


def entry(setup: Setup, more: str = "") -> Iterator[Row]:
    """Losses, norms and parameters of a few updates.      more: options for every run, by which a test plants a fault"""
    config, seed, params, want = reference(setup)
    options = f"{shlex.join(command(config, seed, setup.device))} {more}"
    with tempfile.TemporaryDirectory(prefix="parity-entry-") as name:
        folder = Path(name)
        save_file({key: np.array(p, order="C") for key, p in params.items()}, folder / "weights.safetensors")
        alone = ALONE if setup.quick else ALONE | COMPILED
        if setup.device == "cuda":                        # one GPU: a group of one rank, whose messages go by NCCL all the same
            alone = ALONE | OVER_RANKS | COMPILED
        yield from compared(setup, folder, want, options, 1, {f"{how}, {dtype}".removeprefix(", "): (text, dtype)
                            for how, text in alone.items() for dtype in wanted(how)})  # fmt: skip
        for world in () if setup.device == "cuda" else (2,) if setup.quick else sizes(setup).worlds:
            yield from compared(setup, folder, want, options, world, {f"{how}, {dtype}": (text, dtype)
                                for how, text in OVER_RANKS.items() for dtype in wanted(how)})  # fmt: skip
    if setup.device == "cuda":
        setup.note("on one GPU: ddp and fsdp in a group of one rank, by NCCL")
    setup.note(f"{COUNT} updates of the preset {sizes(setup).training_model}, batch {BATCH}, from command line to export")


def wanted(how: str) -> tuple[str, ...]:
    """In which precisions: the plain ways in all; what is cut into parts in the one that hides nothing."""
    if how == "compiled":
        return ("float32",)
    if "stream" in how:
        return ("mixed",)
    return ("float64",) if "parts" in how else ("float64", "float32", "mixed")


def command(config: SPARCConfig, seed: int, device: str = "cpu") -> list[str]:
    """The options that make the trainer do what `reference` does."""
    fields = [f"--{name.replace('_', '-')}={value}" for name, value in asdict(config).items() if value is not None]
    training = f"--seed {seed} --batch {BATCH} --steps {COUNT} --warmup 2 --lr 1e-3 --weight-decay 0.2"
    return [*fields, "--data", SCENES, *training.split(), *["--log-every", "1", "--workers", "0", "--device", device]]


def reference(setup: Setup) -> tuple[SPARCConfig, int, dict[str, np.ndarray], dict[str, budgets.Measured]]:
    """The reference's updates, and how far rounding may put others.      -> config, seed of the data, weights, by name"""
    config = PRESETS[sizes(setup).training_model]
    scenes = DrawnScenes(size=config.image_size, count=20, captions=2, style="short")
    tokenizer = WordTokenizer(scenes.vocabulary())
    config = replace(config, vocab_size=tokenizer.vocab_size)
    for seed in range(setup.seed, setup.seed + 20):
        params = random_params(config, np.random.default_rng([seed, 5]))
        found = Batches(scenes, tokenizer, BATCH, seed=seed, max_tokens=config.max_tokens)
        batches = [(b.images.astype(np.float64), b.tokens, b.mask) for b, _ in zip(found, range(COUNT))]
        if min(distance(setup, params, batch, config) for batch in batches) > MARGIN:
            break
    else:
        raise NotRun(f"no {COUNT} batches of scenes keep {MARGIN} between their similarities and the threshold")
    schedule = {"peak": 1e-3, "warmup": 2, "steps": COUNT}
    run = partial(reference_training, setup, config, count=COUNT, schedule=schedule, keep=(COUNT,).__contains__)

    def several(dtype):
        runs = [run(params=params, batches=batches, dtype=dtype)]
        if dtype != "float64":
            reverse = [tuple(x[::-1] for x in batch) for batch in batches]
            runs.append(run(params=params, batches=reverse, dtype=dtype))
        if dtype == "float32":
            runs.append(run(params=nudge(params, dtype, setup.seed), batches=batches, dtype="float64"))
        if dtype == "bfloat16":
            runs += [run(params=dither(params, setup.seed + i), batches=batches, dtype=dtype) for i in range(2)]
        return runs

    return config, seed, params, pooled(budgets.measure(several, ("float32", "bfloat16")), COUNT)


def distance(setup: Setup, params: dict, batch: tuple, config: SPARCConfig) -> float:
    """How near a similarity of eq. 2 comes to the threshold."""
    _, trace, _ = setup.reference.model.forward(params, *batch, config)
    sigma = 1 / trace["minmax"].shape[-1] if config.sigma is None else config.sigma
    return float(np.min(np.abs(trace["minmax"][batch[2]] - sigma)))


def compared(
    setup: Setup, folder: Path, want: dict, options: str, world: int, cases: Mapping[str, tuple[str, str]]
) -> Iterator[Row]:
    """Run the cases, over ranks in one start of the processes, and compare what they wrote."""
    runs = {label: folder / f"{world} {label}" for label in cases}
    lines = [f"--out {shlex.quote(str(runs[label]))} --init {shlex.quote(str(folder / 'weights.safetensors'))} {options} {how} "
             + f"--precision {PRECISION[dtype]}" * (STREAM not in how) for label, (how, dtype) in cases.items()]
    if world > 1:
        setup.trainer.ranks.run_ranks(world, f"{__name__}:start", {}, {"commands": lines}, timeout=900)
    for line, (label, (_, dtype)) in zip(lines, cases.items()):
        side = f"trainer, world {world}, {label.rpartition(', ')[0] or 'plain'}"
        try:
            if world == 1:
                start({}, {"commands": [line]})
        except Exception as error:  # what is on trial may do anything; the next way may do well
            words = " ".join(str(error).split())[-300:]
            yield Row(f"raised {type(error).__name__}", dtype, side, float("inf"), 0.0, where=words)
            continue
        yield from rows(written(runs[label]), want, dtype, side)


def start(arrays: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """What a process does: one command line after the other.      RuntimeError with the trainer's words where one fails"""
    from parity.trainer.__main__ import main

    for line in options["commands"]:
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            status = main(shlex.split(line), say=lambda text: None)
        if status:
            raise RuntimeError(f"the trainer ended with {status}: {said.getvalue()[-2000:]}")
    return {"done": np.array(len(options["commands"]))}


def written(run: Path) -> dict[str, np.ndarray]:
    """Losses and norms from the metrics, parameters from the export, by reference_training's names."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    found: dict[str, np.ndarray] = {}
    for row in lines:
        if row["kind"] == "train":
            found |= {f"loss {row['step']}": np.asarray(row["loss"]), f"norm {row['step']}": np.asarray(row["grad_norm"])}
    params = load_file(run / "checkpoints" / f"step_{COUNT:08d}" / "parameters.safetensors")
    return found | {f"after {COUNT}.{name}": p for name, p in params.items()}
