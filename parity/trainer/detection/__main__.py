"""The command line.

    python -m parity.trainer.detection --checkpoint runs/b16 --out runs/b16_detector --mix .8 .2 --without lvis_v1_val.json \\
        --data "objects365:objects365?annotations=zhiyuan_objv2_train.json" vg:visual_genome
"""

import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import tyro

from parity.trainer.__main__ import started
from parity.trainer.detection.augment import Augmentation, forbidden_names
from parity.trainer.detection.data import KINDS, BoxData, read_json
from parity.trainer.detection.train import Examples, Machine, Run, Training, new_detector
from parity.trainer.launch import Elsewhere, Place, everywhere, from_environment, ranks
from parity.trainer.settings import lines
from sparc_ref.run.telling import reasons
from sparc_ref.run.train import Interrupted
from sparc_ref.tasks.spec import absolute, open_data


@dataclass(frozen=True)
class Nothing:
    """There is no protocol while training."""


@dataclass(frozen=True)
class Options:
    """Train a detector on a trained SPARC: OWL-ViT's two heads on its patches, its text tower for the names.

    Data is named as layout:path[?option=value&...]: coco:coco, lvis:FILE?images=coco, objects365:FOLDER, vg:FOLDER,
    scenes:emoji.zip?names=emoji.jsonl.  See docs/tasks/detection.md.
    """

    checkpoint: Path                # the trained towers: a checkpoint or a run directory
    data: tuple[str, ...]           # what to train on
    out: Path                       # the run directory: configuration, metrics, tokenizer, checkpoints
    without: Path | None = None     # names that are not shown: an LVIS file, of which the rare ones, or a text with one a line
    resume: bool = False            # continue the run in --out; start it where there is none
    training: Training = field(default_factory=Training)
    augmentation: Augmentation = field(default_factory=Augmentation)
    machine: Machine = field(default_factory=Machine)


def open_boxes(spec: str) -> BoxData:
    """A data set that was named.   ValueError"""
    return open_data(cast(Any, SimpleNamespace(KINDS=KINDS, Protocol=Nothing)), spec)[0]


def names_in(file: Path) -> list[str]:
    """The names of a list, or of LVIS' rare classes.   ValueError"""
    if file.suffix.lower() == ".json":
        content = read_json(file)
        classes = content.get("categories") if isinstance(content, dict) else None
        names = [str(c.get("name")) for c in classes if isinstance(c, dict) and c.get("frequency") == "r"] if classes else []
        if not names:
            raise ValueError(f"--without {file}: expected LVIS v1's categories with a frequency, found no rare one")
        return names
    try:
        return file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--without {file}: expected a text with one name a line ({error})") from error


def main(argv: Sequence[str] | None = None, say: Callable[[str], Any] = print) -> int:
    """Parse and train.      -> exit status: 0, 2 for what the user can mend, 130 when interrupted"""
    argv = list(sys.argv[1:] if argv is None else argv)
    given = tyro.cli(Options, args=argv, prog="python -m parity.trainer.detection", config=(tyro.conf.OmitArgPrefixes,))
    command = [word if word != "parity.trainer" else "parity.trainer.detection" for word in started()]
    again = shlex.join([*command, *(a for a in argv if a != "--resume"), "--resume"])
    try:
        device = given.machine.device or ("cuda" if torch.cuda.is_available() else "cpu")
        with ranks(device) as place:
            train(given, place, again, say)
    except Elsewhere:
        return 2                                          # another rank says it
    except Interrupted as stop:
        if from_environment().first:
            with suppress(OSError):
                print(stop, file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"parity.trainer.detection: {error}", file=sys.stderr)
        return 2
    return 0


def train(given: Options, place: Place, again: str = "--resume", say: Callable[[str], Any] = print) -> Any:
    """The command on every rank."""
    say = say if place.first else lambda text: None
    if not given.data:
        raise ValueError("--data: expected what to train on, got nothing; for example coco:PATH")
    sets = everywhere(lambda: [open_boxes(spec) for spec in given.data])
    for spec, data in zip(given.data, sets):
        say(f"{spec}: {data.report}")
    forbidden = forbidden_names(names_in(given.without)) if given.without else frozenset()
    model, tokenizer, about = everywhere(lambda: new_detector(given.checkpoint, given.training, given.machine))
    for title, kind in (("training", Training), ("augmentation", Augmentation), ("machine", Machine)):
        say("\n".join(lines(title, getattr(given, title), {}, reasons(cast(Any, kind)))))
    examples = Examples(sets, given.training, given.augmentation, forbidden)
    about |= {"data": [absolute(spec) for spec in given.data]}
    run = everywhere(lambda: Run(model, tokenizer, about, examples, given.training, given.machine, given.out, place, say))
    run.begin(given.resume)
    return run.go(again)


if __name__ == "__main__":
    sys.exit(main())
