"""Processes, devices and wrappers: torchrun's ranks, or this process alone; DistributedDataParallel, or FSDP2."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from parity.trainer.model import SPARC
from parity.trainer.optim import loss_params
from parity.trainer.settings import Machine

PATIENCE = timedelta(minutes=30)                          # how long ranks wait for one another


@dataclass(frozen=True)
class Place:
    """This process among the ranks: its number of all, and of those on this machine."""

    rank: int
    world: int
    local_rank: int
    local_world: int

    @property
    def first(self) -> bool:
        return self.rank == 0


def from_environment() -> Place:
    """What torchrun says; alone where it says nothing."""
    get = {name: int(os.environ.get(name, default)) for name, default in
           {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": os.environ.get("WORLD_SIZE", "1")}.items()}
    return Place(get["RANK"], get["WORLD_SIZE"], get["LOCAL_RANK"], get["LOCAL_WORLD_SIZE"])


@contextmanager
def ranks(device: str) -> Iterator[Place]:
    """Join the process group of all ranks, or make one of this process; one that is there already is used as it is.

    Small messages (JSON, counts, agreement) go by gloo on the CPU whatever the device.
    """
    place = from_environment()
    if dist.is_initialized():
        yield Place(dist.get_rank(), dist.get_world_size(), dist.get_rank(), dist.get_world_size())
        return
    if device == "cuda":
        torch.cuda.set_device(place.local_rank)
    if place.world == place.local_world and sys.platform.startswith("linux"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a machine need not be able to resolve its own name
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    if place.world == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=PATIENCE)
    else:
        dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield place
    finally:
        dist.destroy_process_group()


def on_device(model: SPARC, machine: Machine, place: Place) -> tuple[nn.Module, torch.device]:
    """The model where it will train, wrapped and compiled as the machine's settings say."""
    device = torch.device("cuda", place.local_rank) if machine.device == "cuda" else torch.device("cpu")
    wrapped: Any = model.to(device)
    if machine.compile:
        for block in [*model.vision.blocks, *model.text.blocks]:
            block.compile()
    if machine.strategy == "fsdp":
        mesh = init_device_mesh(device.type, (place.world,))
        for block in [*model.vision.blocks, *model.text.blocks]:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh, ignored_params=set(loss_params(model).values()))  # used outside of the model's forward
    elif machine.strategy == "ddp":
        wrapped = DistributedDataParallel(model, device_ids=[place.local_rank] if machine.device == "cuda" else None)
    return wrapped, device


class Elsewhere(ValueError):
    """What is raised on the ranks on which nothing went wrong, with the words of one where something did."""


# ------------------------------------------------------------------------------------------------- what ranks tell each other


def largest(*numbers: int) -> list[int]:
    """Each number's largest value over all ranks."""
    told = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(told, op=dist.ReduceOp.MAX)
    return told.tolist()


def gathered(value: Any) -> list[Any]:
    """A JSON-able value of every rank."""
    mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(mine)]))
    longest = int(max(sizes))
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: len(mine)] = mine
    every = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(every, padded)
    return [json.loads(bytes(x[: int(size)].tolist())) for x, size in zip(every, sizes)]


def on_first(task: Callable[[], Any]) -> Any:
    """Run it on rank 0 and return its JSON-able value on all; its ValueError or OSError is raised on all."""
    value, error = None, None
    if dist.get_rank() == 0:
        try:
            value = task()
        except (ValueError, OSError) as caught:
            error = caught
    told = gathered([value, f"{error}" if error else None])[0]
    if error:
        raise error
    if told[1] is not None:
        raise Elsewhere(told[1])
    return told[0]


def everywhere(task: Callable[[], Any]) -> Any:
    """Run it on all ranks; where it raises ValueError or OSError on one, that is raised on all, so that none waits for ever."""
    value, error = None, None
    try:
        value = task()
    except (ValueError, OSError) as caught:
        error = caught
    said = [text for text in gathered(str(error) if error else None) if text is not None]
    if error:
        raise error
    if said:
        raise Elsewhere(said[0])
    return value
