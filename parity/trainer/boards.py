"""Where else the rows of metrics go: TensorBoard's files, Weights & Biases.  Neither package is one of ours."""

import uuid
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

WANDB = "wandb"                     # the run's folder for it


class Board(Protocol):
    """Numbers of a row, by name; the step that they belong to."""

    def write(self, numbers: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


def needed(option: str, module: str) -> Any:
    """Import what an option needs.      ValueError with the command that installs it"""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        words = f"--{option}: needs the package {option}, found no module {error.name}: pip install {option}"
        raise ValueError(words) from error


class TensorBoard:
    def __init__(self, out: Path, step: int):
        made = needed("tensorboard", "torch.utils.tensorboard").SummaryWriter
        self.writer = made(str(out / "tensorboard"), purge_step=step + 1 if step else 0)

    def write(self, numbers: dict[str, float], step: int) -> None:
        for name, x in numbers.items():
            self.writer.add_scalar(name, x, step)

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """One run of theirs for a run's folder, however often it is resumed; rows of steps that they have are left as they are.

    Project, entity, offline or not: their own environment variables, WANDB_PROJECT and so on.
    """

    def __init__(self, out: Path, step: int, record: dict):
        wandb = needed("wandb", "wandb")
        kept = out / WANDB / "id"
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            kept.write_text(uuid.uuid4().hex)
        self.run = wandb.init(id=kept.read_text(), name=out.name, dir=str(out), config=record, resume="allow")

    def write(self, numbers: dict[str, float], step: int) -> None:
        self.run.log(numbers, step=step)

    def close(self) -> None:
        self.run.finish()
