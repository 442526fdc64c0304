"""The command line.

    python -m parity.trainer --data drawn --out runs/x
    torchrun --nproc-per-node 8 -m parity.trainer --preset vit_b_16 --data "shards:/data/{00000..00331}.tar" --out runs/b16
"""

import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import torch
import tyro

from parity.trainer import settings
from parity.trainer.data.shards import ShardData, open_shards
from parity.trainer.launch import Elsewhere, Place, everywhere, from_environment, gathered, on_first, ranks
from parity.trainer.settings import Machine, Training
from parity.trainer.tokenizer import learn
from parity.trainer.train import check_free, train
from sparc_ref.data import load_tokenizer
from sparc_ref.model import PRESETS, SPARCConfig
from sparc_ref.objectives.chosen import ObjectiveConfig
from sparc_ref.run.inventory import TOKENIZER
from sparc_ref.run.rundir import fingerprint, shorten
from sparc_ref.run.sources import open_source, open_tokenizer, remembered, validation_of
from sparc_ref.run.telling import reasons
from sparc_ref.run.train import Interrupted

if TYPE_CHECKING:
    Preset: TypeAlias = str
    ModelOptions: TypeAlias = SPARCConfig
    TrainingOptions: TypeAlias = Training
    MachineOptions: TypeAlias = Machine
    ObjectiveOptions: TypeAlias = ObjectiveConfig
else:
    Preset = Literal[tuple(PRESETS)]

    def optional(cls, doc):
        """The fields of a dataclass as options without its checks, whose messages are then ours and not tyro's."""
        made = make_dataclass(cls.__name__ + "Options", [
            (f.name, Annotated[f.type, tyro.conf.arg(help=reasons(cls)[f.name], **({"help_behavior_hint": "(default: chosen)"}
             if f.default is None else {}))], field(default=f.default)) for f in fields(cls)], frozen=True)
        made.__doc__ = doc
        return made

    ModelOptions = make_dataclass("ModelOptions", [
        (f.name, Annotated[f.type | None, tyro.conf.arg(help=reasons(SPARCConfig)[f.name],
         help_behavior_hint="(default: the preset's)")], field(default=None)) for f in fields(SPARCConfig)], frozen=True)
    ModelOptions.__doc__ = "What to change in the preset."
    TrainingOptions = optional(Training, "How to train; a run goes on with the same only.")
    MachineOptions = optional(Machine, "Where and how fast; a run may go on with another.")
    ObjectiveOptions = optional(ObjectiveConfig, "Another loss on the same towers, and its settings (docs/objectives.md).")


@dataclass(frozen=True)
class Options:
    """Train SPARC with torch, on one process or on torchrun's.

    Data is named as for sparc-ref train (drawn, mosaic, pictures:PATH, captions:PATH), or shards:PATH[?how=crop&caption=FIELD],
    where PATH are webdataset tars with braces and wildcards: "shards:/data/cc3m/{00000..00331}.tar".  See docs/trainer.md.
    """

    out: Path                       # the run directory, which all ranks see: configuration, metrics, tokenizer, checkpoints
    training: TrainingOptions
    machine: MachineOptions
    model: ModelOptions
    data: tuple[str, ...] = ("drawn",)  # what to train on
    validation: tuple[str, ...] = ()  # what to measure on; none: what the data keeps apart
    preset: Preset = "tiny"         # sizes of the model, and how the paper trains those of the paper
    tokenizer: Path | None = None   # a saved tokenizer or a sentencepiece .model; none: learned from the captions
    sample: int = 1_000_000         # pictures whose captions a tokenizer is learned from, of shards
    eos: bool = True                # end every caption with an EOS token
    lower: bool = True              # lower-case captions
    init: Path | None = None        # weights to start from, a safetensors file; what was taken is said by name
    resume: bool = False            # continue the run in --out; start it where there is none
    compared: ObjectiveOptions = field(default_factory=ObjectiveOptions)


def main(argv: Sequence[str] | None = None, say: Callable[[str], Any] = print) -> int:
    """Parse and train.      -> exit status: 0, 2 for what the user can mend, 130 when interrupted"""
    argv = list(sys.argv[1:] if argv is None else argv)
    given = tyro.cli(Options, args=argv, prog="python -m parity.trainer", config=(tyro.conf.OmitArgPrefixes,))
    first = from_environment().first
    again = shlex.join([*started(), *(a for a in argv if a != "--resume"), "--resume"])
    try:
        device = given.machine.device or ("cuda" if torch.cuda.is_available() else "cpu")
        with ranks(device) as place:
            run(given, place, again, say)
    except Elsewhere:
        return 2                                          # another rank says it
    except Interrupted as stop:
        if first:
            with suppress(OSError):                       # a closed terminal
                print(stop, file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"parity.trainer: {'' if first else f'rank {from_environment().rank}: '}{error}", file=sys.stderr)
        return 2
    return 0


def started() -> list[str]:
    """How this process was started, as far as it can be told."""
    place = from_environment()
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ["python", "-m", "parity.trainer"]
    nodes = place.world // place.local_world
    many = ["--nnodes", str(nodes)] if nodes > 1 else []
    return ["torchrun", *many, "--nproc-per-node", str(place.local_world), "-m", "parity.trainer"]


def run(given: Options, place: Place, again: str, say: Callable[[str], Any]) -> Any:
    """The command on every rank."""
    first_says = say if place.first else lambda text: None
    everywhere(lambda: check_free(given.out, given.resume))
    changes = {f.name: v for f in fields(given.model) if (v := getattr(given.model, f.name)) is not None}
    config = replace(PRESETS[given.preset], **changes)
    training, why_training = settings.choose_training(Training(**asdict(given.training)), given.preset)
    machine, why_machine = settings.choose_machine(Machine(**asdict(given.machine)), config, training.batch or 0, place.world,
                                                   place.local_world)
    objective = ObjectiveConfig(**asdict(given.compared))
    settings.check(config, training, machine, place.world)
    gathered(None)                                        # nobody writes before all have looked

    def opened(spec: str, **options: Any) -> Any:
        if spec.startswith("shards:"):
            index = given.out / "index"
            return open_shards(spec, config.image_size, index, place.rank, place.world, everywhere, machine.strict)
        return everywhere(lambda: open_source(spec, config.image_size, **options))

    on_first(lambda: given.out.mkdir(parents=True, exist_ok=True))
    sets = [opened(spec) for spec in given.data]
    for spec, dataset in zip(given.data, sets):
        if hasattr(dataset, "report"):
            first_says(f"{spec}: {dataset.report}")
    named, checks = dict(zip(given.data, sets)), {}
    for i, spec in enumerate(given.validation or given.data):
        apart = spec if given.validation else None if spec.startswith("shards:") else validation_of(spec, sets[i])
        if apart:
            few = {} if given.validation else {"count": training.eval_limit}
            checked = opened(apart, split="validation", **few)
            checks[f"{i}:{checked.name}" if i else checked.name] = checked
            named |= {spec: checked} if given.validation else {}
    tokenizer = the_tokenizer(given, config, sets, first_says)
    config = replace(config, vocab_size=tokenizer.vocab_size)
    record = on_first(lambda: recorded(given, config, training, machine, place, sets, checks, named, tokenizer, again))
    record |= {"objective": asdict(objective)} if objective != ObjectiveConfig() else {}
    for line in [f"{place.world} ranks; everything goes to {given.out}/",
                 *settings.lines("model", config, {}, reasons(SPARCConfig)),
                 *(settings.lines("objective", objective, {}, reasons(ObjectiveConfig)) if "objective" in record else []),
                 *settings.lines("training", training, why_training, reasons(Training)),
                 *settings.lines("machine", machine, why_machine, reasons(Machine)),
                 "pictures: resized to a square, bicubic (the paper's resize), then (x / 255 - 0.5) / 0.5",
                 f"tokenizer: {shorten(tokenizer.describe(), 300)}"]:
        first_says(line)
    record["chosen"] = why_training | why_machine
    return train(config, training, machine, sets, tokenizer, given.out, place, validation=checks, record=record,
                 resume=given.resume, init=given.init, again=again, say=say, objective=objective)


def the_tokenizer(given: Options, config: SPARCConfig, sets: list[Any], say: Callable[[str], Any]) -> Any:
    """The one that was named, or the run's own, or one learned by rank 0, which others read from the run's folder."""
    folder = given.out / TOKENIZER

    def make() -> str:
        if given.tokenizer:
            tokenizer = open_tokenizer(given.tokenizer, given.eos, given.lower)
        elif given.resume and (folder / "tokenizer.json").exists():
            return "as before"
        else:
            tokenizer = learn(sets, config.vocab_size, given.eos, given.lower, given.sample)
        if given.resume and (folder / "tokenizer.json").exists() and load_tokenizer(folder).hash != tokenizer.hash:
            raise ValueError(f"--resume: the tokenizer in {folder} is not the one of this run")
        tokenizer.save(folder)
        return str(given.tokenizer or "learned from the captions")

    say(f"tokenizer: {on_first(make)}")
    return everywhere(lambda: load_tokenizer(folder))


def recorded(given, config, training, machine, place, sets, checks, named, tokenizer, again) -> dict:
    """What the run keeps of itself, as `sparc-ref train` does; sources where sparc-ref can open what to measure on."""
    of = {id(d): prints(d) for d in [*sets, *checks.values()]}
    record = {"model": asdict(config), "train": asdict(training), "tokenizer": tokenizer.hash,
              "data": {f"{i}:{d.name}": of[id(d)] for i, d in enumerate(sets)},
              "validation": {name: of[id(d)] for name, d in checks.items()},
              "machine": asdict(machine) | {"ranks": place.world, "torch": torch.__version__}}
    data, validation = ([s for s in specs if not s.startswith("shards:")] for specs in (given.data, given.validation))
    if validation or (data and not given.validation):
        record["sources"] = remembered(data, validation, opened=named) | {"command": again.removesuffix(" --resume")}
    return record


def prints(dataset: Any) -> dict:
    if isinstance(dataset, ShardData):
        return {**dataset.describe(), "sha256 of paths, sizes and counts": dataset.digest()}
    return json.loads(json.dumps(fingerprint(dataset)))


if __name__ == "__main__":
    sys.exit(main())
