"""What is trained, how, and on what machine.

A setting that is not given is chosen here, with the reason, which is printed and kept.

    Training    decides the numbers: a run goes on with the same only
    Machine     decides how fast and where: a run may go on with another
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypeAlias

import torch

from sparc_ref.model import SPARCConfig

Mixing: TypeAlias = Literal["accumulate", "round_robin", "merged"]
Device: TypeAlias = Literal["cpu", "cuda"]
Strategy: TypeAlias = Literal["none", "ddp", "fsdp"]
Precision: TypeAlias = Literal["float32", "bf16", "bf16_stream", "float64"]
Form: TypeAlias = Literal["plain", "gathered", "chunked"]


@dataclass(frozen=True)
class Training:
    """How to train."""

    steps: int | None = None        # updates
    batch: int | None = None        # examples per data set and update, over all ranks: the global loss has batch - 1 negatives
    lr: float | None = None         # peak learning rate; appendix D.4 sweeps 7e-4, 9e-4, 1.1e-3
    warmup: int | None = None       # updates of linear warm-up; a cosine follows
    weight_decay: float | None = None  # decoupled, matrices only; appendix D.4 sweeps 0.1, 0.2, 0.3
    final_lr: float = 0.0           # where the cosine ends
    beta1: float = 0.9              # AdamW, first moment
    beta2: float = 0.98             # AdamW, second moment: open_clip's, the paper is silent
    eps: float = 1e-6               # AdamW: open_clip's, the paper is silent
    clip: float = 1.0               # limit of the gradient's global norm; the paper is silent, this is the usual one
    seed: int = 0                   # initial weights, order of the data and draws of captions
    mixing: Mixing = "accumulate"   # "accumulate": a batch of each data set per update, gradients averaged (D.2)
    shuffle_shards: int = 64        # shards that are shuffled through one another, and read from, at a time
    eval_limit: int = 1000          # examples per evaluation

    def __post_init__(self):
        for name in ("batch", "shuffle_shards", "eval_limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        for name in ("steps", "warmup", "final_lr", "weight_decay", "seed"):
            if (value := getattr(self, name)) is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name}: expected at least 0, got {value}")
        for name in ("lr", "clip", "eps"):
            if (value := getattr(self, name)) is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name}: expected a positive number, got {value}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number in [0, 1), got {getattr(self, name)}")


@dataclass(frozen=True)
class Machine:
    """Where and how fast; none of it changes what is computed, beyond rounding."""

    device: Device | None = None    # what the model runs on
    strategy: Strategy | None = None  # every rank holds the model, by DistributedDataParallel, or shards of it, by FSDP2
    precision: Precision | None = None  # "bf16": the towers' products, by autocast, all else float32; "bf16_stream": what runs
    #                                 through the blocks too, norms, softmax and losses inside float32; "float64": for proofs
    compile: bool = False           # torch.compile every block and the fine-grained loss; costs minutes at the start
    checkpoint_activations: bool = False  # keep each block's input alone, compute the block again in backward
    accumulate: int = 1             # parts that a rank's batch is cut into, exact for the global loss (GradCache)
    fused: bool | None = None       # AdamW in one kernel
    form: Form | None = None        # of the global loss: all logits, a rank's own rows and columns, or those in chunks
    chunk: int = 1024               # columns of a chunk of the global loss
    fine_chunk: int | None = None   # samples of a chunk of the fine-grained loss, whose figures are then not measured
    pair_chunk: int | None = None   # other samples in a block of FILIP, PACL, GLoRIA; none: about 16 million numbers
    workers: int | None = None      # processes per rank that decode pictures
    log_every: int = 10             # updates between two rows of metrics
    eval_every: int = 0             # updates between two evaluations; 0: at the end only
    checkpoint_every: int = 500     # updates between two checkpoints; one is always written at the end
    keep: int = 2                   # checkpoints that stay
    export_every: int = 0           # updates between two exports that sparc-ref opens; 0: at the end only
    async_checkpoints: bool = False  # write checkpoints while training goes on
    skips: int = 10                 # updates in a row with a loss or gradient that is not finite: skipped, then the run stops
    strict: bool = False            # stop at the first sample or shard that cannot be used
    tensorboard: bool = False       # write the metrics for TensorBoard too
    wandb: bool = False             # send the metrics to Weights & Biases too; their environment variables say where
    deterministic: bool = False     # torch.use_deterministic_algorithms; on CPUs nothing random is used anyway

    def __post_init__(self):
        for name in ("accumulate", "chunk", "fine_chunk", "pair_chunk", "log_every", "checkpoint_every", "keep", "skips"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        for name in ("workers", "eval_every", "export_every"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise ValueError(f"{name}: expected at least 0, got {value}")


PAPER = {"steps": 200_000, "batch": 16_384, "lr": 9e-4, "warmup": 2_500, "weight_decay": 0.2}
RECIPES: dict[str, dict[str, Any]] = {
    "tiny": {"steps": 600, "batch": 64, "lr": 1e-3, "warmup": 50, "weight_decay": 0.2},
    "small": {"steps": 2_000, "batch": 64, "lr": 1e-3, "warmup": 50, "weight_decay": 0.2},
    "vit_b_32": PAPER, "vit_b_16": PAPER, "vit_l_14": PAPER | {"steps": 250_000},
}  # fmt: skip
WHY = {
    "steps": "section 4.1", "batch": "section 4.1, over all ranks", "lr": "the middle of D.4's sweep",
    "warmup": "appendix D.4", "weight_decay": "the middle of D.4's sweep",
}  # fmt: skip
LARGE = 8_192                                             # examples from which the global loss goes in chunks
SHARDED = 1_000_000_000                                   # parameters from which ranks hold shards
CORES = 8                                                 # decoding processes a rank at most


def choose_training(given: Training, preset: str) -> tuple[Training, dict[str, str]]:
    """Fill in what was not given.      -> it, and name -> reason for each that was chosen"""
    if preset not in RECIPES:
        raise ValueError(f"preset: expected one of {', '.join(RECIPES)}, got {preset!r}")
    missing = [f.name for f in fields(given) if getattr(given, f.name) is None]
    source = (lambda name: WHY[name]) if RECIPES[preset]["batch"] == PAPER["batch"] else (lambda name: "as sparc-ref train")
    return replace(given, **{name: RECIPES[preset][name] for name in missing}), {
        name: f"preset {preset}: {source(name)}" for name in missing}


def choose_machine(
    given: Machine, config: SPARCConfig, batch: int, world: int, local_world: int
) -> tuple[Machine, dict[str, str]]:
    """Fill in what was not given, for this machine.      -> it, and name -> reason for each that was chosen"""
    found: dict[str, tuple[Any, str]] = {}
    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    found["device"] = device, "there is a GPU" if device == "cuda" else "there is no GPU"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: expected cpu, as torch sees no GPU here, got cuda")
    narrow = device == "cuda" and torch.cuda.is_bf16_supported()
    found["precision"] = ("bf16", "the GPU computes in bfloat16") if narrow else ("float32", "bfloat16 gains nothing here")
    count = sum(parameters(config))
    found["strategy"] = (
        ("none", "one rank") if world == 1 else ("ddp", f"{count:,} parameters fit on every rank") if count < SHARDED
        else ("fsdp", f"{count:,} parameters are held in shards"))
    found["fused"] = device == "cuda", "one kernel for all parameters on a GPU" if device == "cuda" else "no gain on a CPU"
    found["form"] = (
        ("chunked", f"{batch:,} x {batch:,} logits are not kept") if batch >= LARGE
        else ("plain", "one rank") if world == 1 else ("gathered", "a rank needs its own rows and columns alone"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(CORES, max(1, cores // local_world - 1)) if cores > local_world else 0
    found["workers"] = workers, f"{cores} cores for {local_world} ranks of this machine"
    missing = [name for name in found if getattr(given, name) is None]
    return replace(given, **{name: found[name][0] for name in missing}), {name: found[name][1] for name in missing}


def parameters(config: SPARCConfig) -> list[int]:
    """How many numbers each parameter has."""
    from parity.trainer.model import SPARC

    with torch.device("meta"):
        return [p.numel() for p in SPARC(config).parameters()]


def check(config: SPARCConfig, training: Training, machine: Machine, world: int) -> None:
    """ValueError for settings that do not go together."""
    batch = training.batch or 0
    if batch % world:
        raise ValueError(f"batch: expected a multiple of the {world} ranks, got {batch}")
    if machine.accumulate > batch // world:
        raise ValueError(f"accumulate: expected at most {batch // world} parts of one sample each, got {machine.accumulate}")
    if machine.strategy == "none" and world > 1:
        raise ValueError(f"strategy: expected ddp or fsdp for {world} ranks, got none")
    if config.temperature == "separate" and not config.lambda_f and machine.strategy == "ddp":
        raise ValueError("temperature: separate has a parameter that nothing uses with lambda_f 0; choose shared")


def lines(title: str, values: Any, reasons: Mapping[str, str], notes: Mapping[str, str]) -> list[str]:
    """The effective settings, one a line: a reason where it was chosen, else what it is."""
    return [f"{title}:"] + [
        f"  {name:22} {value!s:12} {'chosen: ' + reasons[name] if name in reasons else notes.get(name, '')}".rstrip()
        for name, value in asdict(values).items()]
