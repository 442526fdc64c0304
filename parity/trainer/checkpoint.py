"""Checkpoints in shards, by torch.distributed.checkpoint: every rank writes its part, any number of ranks reads them.

    RUN/sharded/step_00000100/
        *.distcp, .metadata     parameters and both moments of AdamW, under the reference's names
        trainer.json            step, settings, places in the data, counts; sizes of the files beside it; written last

A checkpoint is written under a hidden name, flushed and renamed, so that what has its name is whole, whenever the process is
killed.  Its .metadata is a pickle, as torch.distributed.checkpoint writes it: resume your own runs only.  What travels is the
export (export.py): safetensors and JSON.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter

from parity.trainer.launch import gathered, on_first
from parity.trainer.model import bare
from sparc_ref.run.files import flush, put, read_bytes, writing

FOLDER, ABOUT = "sharded", "trainer.json"
NAME = re.compile(r"step_(\d{8,})")
MOMENTS = ("exp_avg", "exp_avg_sq")


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters and moments by name: the tensors themselves, so that loading fills them.  Missing moments are made."""
    state: dict[str, Tensor] = {}
    for name, p in bare(model).named_parameters():
        own = optimizer.state[p]
        if not own:
            fused = optimizer.param_groups[0]["fused"]
            own["step"] = torch.zeros((), dtype=torch.float32, device=p.device if fused else "cpu")
            own |= {moment: torch.zeros_like(p, memory_format=torch.preserve_format) for moment in MOMENTS}
        state[f"params.{name}"] = p.detach()
        state |= {f"{moment}.{name}": own[moment] for moment in MOMENTS}
    return state


def applied(optimizer: torch.optim.Optimizer) -> int:
    """How many updates AdamW has made."""
    return max((int(own["step"]) for own in optimizer.state.values()), default=0)


class Checkpoints:
    """The checkpoints of a run.      keep: how many stay; in_background: write while training goes on"""

    def __init__(self, run: Path, keep: int, in_background: bool = False):
        self.folder, self.keep, self.in_background = run / FOLDER, keep, in_background
        self.group = dist.new_group(backend="gloo") if in_background else None  # the writing thread's own: messages would mix
        self.pending: tuple[Any, Path, dict] | None = None
        on_first(self.clean)

    def clean(self) -> None:
        """Remove what a killed process left unfinished."""
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)
            for path in self.folder.iterdir():
                if re.fullmatch(r"\.(partial|deleted)-step_\d{8,}", path.name):
                    shutil.rmtree(path)

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, about: dict) -> None:
        """All ranks call it.  In the background: the tensors are copied first, and finish() must be called in the end."""
        self.finish()
        if (self.folder / f"step_{step:08d}").exists():
            return
        partial = self.folder / f".partial-step_{step:08d}"
        about = about | {"step": step, "applied": applied(optimizer), "world": dist.get_world_size()}
        about = json.loads(json.dumps(about | {"torch": torch.__version__}))  # as it is now: training goes on
        state = state_of(model, optimizer)
        if self.in_background:
            future = dcp.async_save(state, storage_writer=FileSystemWriter(partial), process_group=self.group)
            self.pending = future, partial, about
        else:
            dcp.save(state, storage_writer=FileSystemWriter(partial))
            self.name(partial, about)

    def finish(self) -> None:
        """Wait for what is being written, and give it its name."""
        if self.pending is None:
            return
        (future, partial, about), self.pending = self.pending, None
        future.result()
        self.name(partial, about)

    def name(self, partial: Path, about: dict) -> None:
        gathered(None)                                    # every rank has written its part

        def give() -> None:
            with writing(partial):
                files = {p.name: p.stat().st_size for p in sorted(partial.iterdir()) if p.name != ABOUT}
                (partial / ABOUT).unlink(missing_ok=True)
                put(partial / ABOUT, json.dumps(about | {"files": files}, indent=1).encode())
                for path in [partial / ABOUT, *map(partial.joinpath, files), partial]:
                    flush(path)
                os.replace(partial, self.folder / partial.name.removeprefix(".partial-"))
                flush(self.folder)
                for old in self.steps()[: -self.keep]:
                    gone = old.with_name(f".deleted-{old.name}")
                    os.replace(old, gone)
                    shutil.rmtree(gone)

        on_first(give)

    def steps(self) -> list[Path]:
        return steps(self.folder)

    def latest(self) -> tuple[Path, dict] | None:
        """The newest checkpoint and what it says of itself, on all ranks.      ValueError where its files are damaged"""
        told = on_first(lambda: [str(self.steps()[-1]), read_about(self.steps()[-1])] if self.steps() else None)
        return (Path(told[0]), told[1]) if told else None


def load(path: Path, about: dict, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fill model and optimiser, whatever the number of ranks and their shards were.  All ranks call it."""
    dcp.load(state_of(model, optimizer), storage_reader=FileSystemReader(path))
    for own in optimizer.state.values():
        own["step"].fill_(about["applied"])


def steps(folder: Path) -> list[Path]:
    """Whole checkpoints of a folder, oldest first."""
    named = [(int(m[1]), p) for p in (folder.iterdir() if folder.is_dir() else ()) if (m := NAME.fullmatch(p.name))]
    return [p for _, p in sorted(named)]


def read_about(path: Path) -> dict:
    """What a checkpoint says of itself, its files' sizes compared."""
    try:
        about = json.loads(read_bytes(path / ABOUT))
        sizes = {name: (path / name).stat().st_size for name in about["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a whole checkpoint ({error}); delete it to go on from the one before") from error
    if wrong := [name for name, size in about["files"].items() if sizes[name] != size]:
        raise ValueError(f"{path}: {wrong[0]} has {sizes[wrong[0]]} bytes where {about['files'][wrong[0]]} were written; "
                         "delete this checkpoint to go on from the one before")
    return about
