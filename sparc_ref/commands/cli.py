"""The command line, generated from dataclasses: demo | train | evaluate | report | explain | cost, and what others add.

Another package adds a command by an entry point of the group "sparc_ref.commands": a dataclass with run() -> exit status, and
`needs`, the extra that brings what it imports.  parity adds `check` so; this package imports nothing of it.
"""

import codecs
import io
import os
import re
import shlex
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, is_dataclass, make_dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import tyro

from sparc_ref import __version__
from sparc_ref.backend import get_device
from sparc_ref.commands.cost import CostCommand
from sparc_ref.commands.demo import DemoConfig, demo
from sparc_ref.commands.evaluate import Data, Evaluate, otherwise, run_evaluate, run_tables
from sparc_ref.model import PRESETS, SPARCConfig
from sparc_ref.objectives.chosen import ObjectiveConfig
from sparc_ref.run.files import REMEDIES, check_output
from sparc_ref.run.telling import as_word, reasons
from sparc_ref.run.train import Interrupted, TrainConfig, train

if TYPE_CHECKING:
    Preset: TypeAlias = str
    ModelOptions: TypeAlias = SPARCConfig
    TrainOptions: TypeAlias = TrainConfig
    ObjectiveOptions: TypeAlias = ObjectiveConfig
else:
    Preset, why = Literal[tuple(PRESETS)], reasons(SPARCConfig)

    def presets(name):
        """An option's value in every preset: "64 tiny, small; 224 vit_b_32, vit_b_16, vit_l_14"."""
        values = {}
        for preset, config in PRESETS.items():
            value = getattr(config, name)
            values.setdefault("1/P" if value is None else value, []).append(preset)  # only sigma may be None
        return "; ".join(f"{value} {', '.join(names)}" for value, names in values.items()) if len(values) > 1 else (
            f"{next(iter(values))} in every preset")

    # one optional option per field of SPARCConfig: what is not given is the preset's
    ModelOptions = make_dataclass("ModelOptions", [
        (f.name, Annotated[f.type | None, tyro.conf.arg(
            help=why[f.name], metavar={int: "INT", str: "STR"}.get(f.type, "FLOAT"),
            help_behavior_hint=f"(default: {presets(f.name)})")],
         field(default=None)) for f in fields(SPARCConfig)
    ], frozen=True)
    ModelOptions.__doc__ = "What to change in the preset."
    # TrainConfig without its checks: their messages are then this command line's, not tyro's
    TrainOptions = make_dataclass("TrainOptions", [
        (f.name, Annotated[f.type, tyro.conf.arg(help=reasons(TrainConfig)[f.name])], field(default=f.default))
        for f in fields(TrainConfig)
    ], frozen=True)
    TrainOptions.__doc__ = "How to train."
    ObjectiveOptions = make_dataclass("ObjectiveOptions", [
        (f.name, Annotated[f.type, tyro.conf.arg(help=reasons(ObjectiveConfig)[f.name])], field(default=f.default))
        for f in fields(ObjectiveConfig)
    ], frozen=True)
    ObjectiveOptions.__doc__ = "Another loss on the same towers, and its settings (docs/objectives.md)."


@dataclass(frozen=True)
class Train:
    """Train a model on one or several data sets: one batch from each per update, gradients averaged.

    Data is named as kind[:path][?option=value&...]:
      drawn                                  scenes drawn here, nothing downloaded; e.g. "drawn?style=short&objects=1,3"
      mosaic                                 pictures cut into regions, each with a name; e.g. "mosaic?coverage=0.5"
      "pictures:emoji.zip?names=emoji.jsonl" named pictures with transparency, pasted into scenes with captions
      "wallpaper:emoji.zip?names=emoji.jsonl"  mosaics of such pictures, every region papered with one
      captions:photos/                       pictures with captions in any format of docs/data.md: CSV, TSV, JSON lines, COCO,
                                             Karpathy's splits, Flickr30k, imagefolder, img2dataset
      "captions:photos/?split=train"         95 % of one folder, by a hash of each picture's name; split=validation is the rest
    """

    out: Path                       # the run directory: configuration, metrics, tokenizer, checkpoints
    training: TrainOptions
    model: ModelOptions
    # what to train on; several are accumulated
    data: Annotated[tuple[str, ...], tyro.conf.arg(metavar=Data)] = ("drawn",)
    # what to measure on, every --eval-every updates
    validation: Annotated[tuple[str, ...], otherwise(Data, "what is kept apart, else the data itself")] = ()
    preset: Preset = "tiny"         # sizes of the model; on a CPU tiny takes minutes, small an hour; the others are the paper's
    # a saved tokenizer or a sentencepiece .model
    tokenizer: Annotated[Path | None, otherwise("PATH", "learned from the captions")] = None
    eos: bool = True                # end every caption with an EOS token
    lower: bool = True              # lower-case captions
    resume: bool = False            # continue the run in --out, bit for bit; start it where there is none
    overwrite: bool = False         # delete the run that --out holds
    compared: ObjectiveOptions = field(default_factory=ObjectiveOptions)


@dataclass(frozen=True)
class Report:
    """Measure runs and write a page with numbers, heat maps, curves and configuration, side by side where there are several."""

    # run directories; the demo's stands for both of its runs
    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    # what to measure all of them on, as in train
    data: Annotated[tuple[str, ...], otherwise(Data, "what the first run names, as in evaluate")] = ()
    # measure nothing: lay what `evaluate --task` kept of these runs out like the paper's tables, its numbers beside them
    tables: bool = False
    out: Annotated[Path | None, otherwise("PATH", "report.html, or tables.html, in the first run")] = None  # the page to write
    # examples at most
    limit: Annotated[int | None, otherwise("INT", "1000 of scenes, all captioned pictures")] = None


@dataclass(frozen=True)
class Explain:
    """Draw, for every word of a caption, similarity, weights and grouped region over a picture."""

    image: tyro.conf.Positional[Path]  # the picture, any common format
    caption: tyro.conf.Positional[str]  # what to look for
    checkpoint: Path                # a checkpoint or a run directory
    out: Path = Path("explain.png")  # the figure to write


COMMANDS: dict[str, Any] = {"demo": DemoConfig, "train": Train, "evaluate": Evaluate, "report": Report, "explain": Explain,
                            "cost": CostCommand}
ADDED: dict[str, Any] = {point.name: point.load() for point in sorted(entry_points(group="sparc_ref.commands"))}


def run(argv: list[str]) -> int:
    """Parse and carry out a command.   -> exit status: 0, 2 for what the user can mend, 130 when interrupted

    tyro itself ends wrong options with status 2 and the nearest name.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):          # progress shows in a log file too, and names as they can be pasted
            stream.reconfigure(line_buffering=True, errors="surrogateescape" if is_utf8(stream) else "backslashreplace")
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
                return run_evaluate(command)
            case Report(tables=True):
                run_tables(command.runs, command.data, command.limit, command.out)
            case Report():
                from sparc_ref.commands.report import report

                report(command.runs, command.data, command.out, command.limit)
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
        if isinstance(command, (Train, DemoConfig)):
            print(f"stopped at once; the last checkpoint is intact. Continue with:\n  {again}", file=sys.stderr)
        elif isinstance(command, Evaluate) and command.task:
            print("stopped; what was measured is kept, the same command (without --again) goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:                               # see pipes.py
        raise
    except ModuleNotFoundError as error:
        extra = getattr(command, "needs", "run")
        print(f"sparc-ref: the package {error.name} is missing; in a clone of sparc_ref: pip install '.[{extra}]'",
              file=sys.stderr)
        return 2
    except (ValueError, OSError, MemoryError, ArithmeticError) as error:
        print(f"sparc-ref: {as_options(told(error), command) or type(error).__name__}", file=sys.stderr)
        return 2
    return 0


def is_utf8(stream: io.TextIOWrapper) -> bool:
    return codecs.lookup(stream.encoding).name == "utf-8"


def told(error: BaseException) -> str:
    """The message of an error; the system's own get the file first and the remedy last, as ours have."""
    if type(error).__module__ == "builtins" and isinstance(error, OSError) and error.filename and error.strerror:
        return f"{os.fspath(error.filename)}: {error.strerror}; {REMEDIES.get(error.errno or 0, 'mend that')}"
    return str(error)


def to_continue(argv: list[str]) -> str:
    """The command that goes on where this one stops: it never deletes what there is."""
    return shlex.join(["sparc-ref", *(a for a in argv if a not in ("--overwrite", "--no-overwrite", "--no-resume", "--resume")),
                       "--resume"])


def as_options(message: str, command: Any) -> str:
    """A message in which fields of the command are spelled as its options: "eval_limit: ..." -> "--eval-limit: ..."

    Names of several words wherever they stand alone; plain words, which may be anything, only where a message begins with
    them and a colon; "train.lr: ", "model.lambda_f: " of two runs that differ. Paths and quoted texts stay as they are.
    """
    names = {f.name for f in fields(command)}
    names |= {f.name for part in vars(command).values() if is_dataclass(part) for f in fields(part)}
    also = {"batch_size": "batch"} if "batch" in names else {}
    spelled = {name: "--" + name.replace("_", "-") for name in names} | {name: f"--{option}" for name, option in also.items()}
    several = [name for name in spelled if "_" in name]
    patterns = [rf"^({'|'.join(spelled)})(?=: )", rf"(?<![\w./-])(?:train|model)\.({'|'.join(spelled)})(?=: )",
                *[rf"(?<![\w./'\"-])({'|'.join(several)})(?![\w/'\"=(-]|\.\w)"] * bool(several)]
    for pattern in patterns:
        message = re.sub(pattern, lambda found: spelled[found[1]], message)
    return message


def run_train(command, again):
    """The command `train`."""
    from sparc_ref.run.rundir import TOKENIZER, check_out
    from sparc_ref.run.sources import make_tokenizer, open_source, open_tokenizer, remembered, validation_of

    check_out(command.out, command.resume, command.overwrite)
    training = TrainConfig(**asdict(command.training))
    objective = ObjectiveConfig(**asdict(command.compared))
    get_device(training.device)
    changes = {f.name: v for f in fields(command.model) if (v := getattr(command.model, f.name)) is not None}
    config = replace(PRESETS[command.preset], **changes)
    sets = [open_source(spec, config.image_size) for spec in command.data]
    for spec, dataset in zip(command.data, sets):
        if hasattr(dataset, "report"):
            print(f"{spec}: {dataset.report}")
    named = dict(zip(command.data, sets))
    if command.validation:
        checks = {}
        for spec in command.validation:
            opened = named[spec] = open_source(spec, config.image_size, split="validation")
            checks[f"{opened.name}" if opened.name not in checks else f"{opened.name}#{len(checks)}"] = opened
    else:
        checks = {}
        for i, (spec, dataset) in enumerate(zip(command.data, sets)):
            if apart := validation_of(spec, dataset):
                opened = open_source(apart, config.image_size, split="validation", count=training.eval_limit)
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
        for name in ("eos", "lower"):
            if (there := getattr(tokenizer, name)) != (here := getattr(command, name)):
                raise ValueError(f"--resume: {command.out} was started with other settings; "
                                 f"--{name}: {there} there, {here} here")
    else:
        tokenizer = make_tokenizer(sets, config.vocab_size, command.eos, command.lower)
    train(replace(config, vocab_size=tokenizer.vocab_size), training, sets, tokenizer, command.out,
          validation=checks, resume=command.resume, overwrite=command.overwrite, again=again, objective=objective,
          sources=remembered(command.data, command.validation, opened=named) | {"command": started(again)})
    print(f"Measure it, and see it on a page:\n  {shlex.join(['sparc-ref', 'report', as_word(command.out)])}")


def started(again: str) -> str:
    """The command that began a run, without the place: two runs of the same hold the same."""
    words = [word for word in shlex.split(again) if word not in ("--resume", "--overwrite")]
    out = words.index("--out") if "--out" in words else len(words)
    return shlex.join(word for word in [*words[:out], *words[out + 2:]] if not word.startswith("--out="))
