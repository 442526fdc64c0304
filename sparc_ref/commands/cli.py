"""The command line, generated from dataclasses: sparc-ref demo | train | evaluate | explain, and what others add.

Another package adds a command by an entry point of the group "sparc_ref.commands": a dataclass with run() -> exit status, and
`needs`, the extra that brings what it imports.  parity adds `check` so; this package imports nothing of it.
"""

import json
import os
import shlex
import sys
from contextlib import suppress
from dataclasses import dataclass, field, fields, make_dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import tyro

from sparc_ref import __version__
from sparc_ref.backend import get_device
from sparc_ref.commands.demo import DemoConfig, demo
from sparc_ref.model import PRESETS, SPARCConfig
from sparc_ref.run.files import check_output, write_output
from sparc_ref.run.train import Interrupted, TrainConfig, reasons, train

if TYPE_CHECKING:
    Preset: TypeAlias = str
    ModelOptions: TypeAlias = SPARCConfig
else:  # one optional option per field of SPARCConfig: what is not given is the preset's
    Preset, why = Literal[tuple(PRESETS)], reasons(SPARCConfig)
    ModelOptions = make_dataclass("ModelOptions", [
        (f.name, Annotated[f.type | None, tyro.conf.arg(help=f"{why.get(f.name, '')} [the preset's]".strip())],
         field(default=None)) for f in fields(SPARCConfig)
    ], frozen=True)
    ModelOptions.__doc__ = "What to change in the preset. vocab_size is the most pieces that a tokenizer learns here."


@dataclass(frozen=True)
class Train:
    """Train a model on one or several data sets: one batch from each per update, gradients averaged.

    Data is named as kind[:path][?option=value&...]:
      drawn                                  scenes drawn here, nothing downloaded; e.g. "drawn?style=short&objects=1,3"
      "pictures:emoji.zip?names=emoji.jsonl" named pictures with transparency, pasted into scenes with captions
      captions:photos/                       pictures with captions in any format of docs/data.md: CSV, TSV, JSON lines, COCO,
                                             Karpathy's splits, Flickr30k, imagefolder, img2dataset
      "captions:photos/?split=train"         95 % of one folder, by a hash of each picture's name; split=validation is the rest
    """

    out: Path                       # the run directory: configuration, metrics, tokenizer, checkpoints
    training: TrainConfig
    model: ModelOptions
    data: tuple[str, ...] = ("drawn",)  # what to train on; several are accumulated
    validation: tuple[str, ...] = ()  # what to measure on; default: what is kept apart, else the images trained on
    preset: Preset = "tiny"         # tiny: seconds on a CPU; small: minutes; the others are the paper's
    tokenizer: Path | None = None   # a saved tokenizer or a sentencepiece .model; default: learned from the captions
    eos: bool = True                # end every caption with an EOS token
    lower: bool = True              # lower-case captions
    resume: bool = False            # continue the run in `out`, bit for bit; start it where there is none
    overwrite: bool = False         # delete the run that `out` holds


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained model: retrieval, and where there are masks segmentation and localisation; the grounding gap always."""

    checkpoint: Path                # a checkpoint or a run directory
    data: tuple[str, ...] = ("drawn",)  # as in train
    split: str = "test"             # of drawn scenes: train, validation, test, unseen; of pictures: ..., heldout
    limit: int | None = None        # examples at most
    batch: int = 64                 # examples at a time
    shards: int = 4                 # parts of a batch side by side
    json: Path | None = None        # also write the numbers here


@dataclass(frozen=True)
class Explain:
    """Draw, for every word of a caption, similarity, weights and grouped region over a picture."""

    image: tyro.conf.Positional[Path]  # the picture, any common format
    caption: tyro.conf.Positional[str]  # what to look for
    checkpoint: Path                # a checkpoint or a run directory
    out: Path = Path("explain.png")  # the figure to write


COMMANDS: dict[str, Any] = {"demo": DemoConfig, "train": Train, "evaluate": Evaluate, "explain": Explain}
ADDED: dict[str, Any] = {point.name: point.load() for point in sorted(entry_points(group="sparc_ref.commands"))}


def run(argv: list[str]) -> int:
    """Parse and carry out a command.   -> exit status: 0, 2 for what the user can mend, 130 when interrupted

    tyro itself ends wrong options with status 2 and the nearest name.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)       # progress shows in a log file too
    if argv in (["--version"], ["-V"]):
        print(f"sparc_ref {__version__}")
        return 0
    given = [a.partition("=")[0] for a in argv if a.startswith("--")]
    if twice := sorted({a for a in given if given.count(a) > 1}):
        print(f"sparc-ref: {twice[0]} is given more than once; where several values are taken they follow one {twice[0]}",
              file=sys.stderr)
        return 2
    if empty := [a.partition("=")[0] for a, after in zip(argv, [*argv[1:], None])
                 if a.startswith("--") and (a.partition("=")[1:] == ("=", "") or after == "")]:
        print(f"sparc-ref: {empty[0]}: expected a value, got an empty one", file=sys.stderr)
        return 2
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS | ADDED, args=argv, prog="sparc-ref", sort_subcommands=False,
        description="A readable NumPy reference of SPARC (arXiv 2401.09865).",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    again = to_continue(argv)
    try:
        match command:
            case Train():
                run_train(command, again)
            case Evaluate():
                run_evaluate(command)
            case Explain():
                from sparc_ref.show.explain import explain

                check_output("--out", command.out)
                explain(command.checkpoint, command.image, command.caption, command.out)
            case DemoConfig():
                demo(command, again=again)
            case _:
                return command.run()
    except Interrupted as stop:
        with suppress(OSError):                           # a closed terminal
            print(stop, file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        if type(command) in ADDED.values():
            return 130
        print(f"stopped at once; the last checkpoint is intact. Continue with:\n  {again}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except ModuleNotFoundError as error:
        extra = getattr(command, "needs", "run")
        print(f"sparc-ref: the package {error.name} is missing: pip install 'sparc_ref[{extra}]'", file=sys.stderr)
        return 2
    except (ValueError, OSError, MemoryError, ArithmeticError) as error:
        print(f"sparc-ref: {error or type(error).__name__}", file=sys.stderr)
        return 2
    return 0


def to_continue(argv: list[str]) -> str:
    """The command that goes on where this one stops: it never deletes what there is."""
    return shlex.join(["sparc-ref", *(a for a in argv if a not in ("--overwrite", "--no-overwrite", "--no-resume", "--resume")),
                       "--resume"])


def run_train(command, again):
    """The command `train`."""
    from sparc_ref.run.rundir import TOKENIZER, check_out
    from sparc_ref.run.sources import make_tokenizer, open_source, open_tokenizer, validation_of

    check_out(command.out, command.resume, command.overwrite)
    get_device(command.training.device)
    changes = {f.name: v for f in fields(command.model) if (v := getattr(command.model, f.name)) is not None}
    config = replace(PRESETS[command.preset], **changes)
    sets = [open_source(spec, config.image_size) for spec in command.data]
    for spec, dataset in zip(command.data, sets):
        if hasattr(dataset, "report"):
            print(f"{spec}: {dataset.report}")
    if command.validation:
        checks = {}
        for spec in command.validation:
            opened = open_source(spec, config.image_size, split="validation")
            checks[f"{opened.name}" if opened.name not in checks else f"{opened.name}#{len(checks)}"] = opened
    else:
        checks = {}
        for i, (spec, dataset) in enumerate(zip(command.data, sets)):
            if apart := validation_of(spec, dataset):
                opened = open_source(apart, config.image_size, split="validation", count=command.training.eval_limit)
                checks[f"{i}:{opened.name}"] = opened
            else:
                checks[f"{i}:{dataset.name}, trained on"] = dataset
    for name, opened in checks.items():
        if hasattr(opened, "report") and opened not in sets:
            print(f"measured on {name}: {opened.report}")
    if command.tokenizer:
        tokenizer = open_tokenizer(command.tokenizer, command.eos, command.lower)
    elif command.resume and (command.out / TOKENIZER / "tokenizer.json").exists():
        tokenizer = open_tokenizer(command.out / TOKENIZER)
    else:
        tokenizer = make_tokenizer(sets, config.vocab_size, command.eos, command.lower)
    train(replace(config, vocab_size=tokenizer.vocab_size), command.training, sets, tokenizer, command.out,
          validation=checks, resume=command.resume, overwrite=command.overwrite, again=again)


def run_evaluate(command):
    """The command `evaluate`: one table per data set; JSON where asked for."""
    from sparc_ref.run.measure import evaluate
    from sparc_ref.run.rundir import load_run
    from sparc_ref.run.sources import check_split, has_splits, open_source
    from sparc_ref.run.train import one_blas_thread

    for name in ("limit", "batch", "shards"):
        if (value := getattr(command, name)) is not None and value < 1:
            raise ValueError(f"--{name}: expected at least 1, got {value}")
    if command.split:
        check_split(command.split, command.data)
    check_output("--json", command.json)
    params, config, tokenizer, found = load_run(command.checkpoint)
    results = {}
    for spec in command.data:
        dataset = open_source(spec, config.image_size, split=command.split)
        if hasattr(dataset, "report"):
            print(f"{spec}: {dataset.report}")
        limit = command.limit or min(len(dataset), 1000 if has_splits(spec) else len(dataset))
        with one_blas_thread(command.shards > 1):
            numbers = evaluate(params, config, dataset, tokenizer, limit, command.batch, shards=command.shards)
        results[f"{spec} {dataset.name}"] = numbers
        print(f"{found.path} on {dataset.name}, {limit} examples")
        for name, value in numbers.items():
            if not name.endswith("_chance"):
                chance = numbers.get(name + "_chance")
                print(f"  {name:26} {value:10.4f}" + (f"   (chance {chance:.4f})" if chance is not None else ""))
    if command.json:
        content = {"checkpoint": str(found.path), "step": found.step, "results": results}
        write_output(command.json, json.dumps(content, indent=1))
