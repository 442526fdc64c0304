"""Batches of one data set for one rank: decoded in worker processes, in an order that their number does not change."""

import math
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from parity.trainer.data.order import Deal, Order
from sparc_ref.data.images import resize
from sparc_ref.data.load_report import Unusable
from sparc_ref.run.inventory import LOCK


class Decoded(NamedTuple):
    """One sample: image (S,S,3) uint8 and ids, or the reason why not."""

    item: int
    image: Tensor | None
    ids: list[int]
    dropped: int = 0
    reason: str = ""
    name: str = ""


@dataclass(frozen=True)
class Batch:
    """images (b,S,S,3) uint8, tokens (b,L) int64, mask (b,L) bool, items: which samples; cut, dropped: captions, tokens"""

    images: Tensor
    tokens: Tensor
    mask: Tensor
    items: list[int]
    cut: int
    dropped: int


class Decoder:
    """What a worker does with samples: read, decode, resize, tokenize.      [(sample, draw), ...] -> [Decoded, ...]"""

    def __init__(self, dataset: Any, tokenizer: Any, image_size: int, max_tokens: int):
        self.dataset, self.tokenizer, self.image_size, self.max_tokens = dataset, tokenizer, image_size, max_tokens

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, task: tuple[int, float]) -> Decoded:
        item, draw = task
        try:
            example = self.dataset[item]
        except Unusable as error:
            return Decoded(item, None, [], reason=error.reason, name=str(error)[:200])
        if not example.captions:
            return Decoded(item, None, [], reason="picture without a caption", name=example.key)
        image = example.image
        if image.shape[:2] != (self.image_size, self.image_size):
            image = resize(image, self.image_size)
        encoding = self.tokenizer.encode(example.captions[int(draw * len(example.captions))], self.max_tokens)
        return Decoded(item, torch.from_numpy(np.ascontiguousarray(image)), list(encoding.ids), encoding.dropped)


def together(samples: list[Decoded]) -> tuple[Tensor | None, list[Decoded]]:
    """The images of a chunk as one tensor, which crosses from a worker as one piece of shared memory."""
    images = [s.image for s in samples if s.image is not None]
    return (torch.stack(images) if images else None), [s._replace(image=None) for s in samples]


def let_go(worker: int) -> None:
    """A worker keeps no lock of the run's folder open, or it would outlive a trainer that is killed."""
    folder = Path("/proc/self/fd")
    for handle in folder.iterdir() if folder.is_dir() else ():
        with suppress(OSError):
            if os.readlink(handle).endswith(f"/{LOCK}"):
                os.close(int(handle.name))


class Tasks:
    """Chunks of what is left of a rank's hand; what a DataLoader calls a batch sampler."""

    def __init__(self, stream: "Stream"):
        self.stream = stream

    def __iter__(self) -> Iterator[list[tuple[int, float]]]:
        s = self.stream
        hand = s.order.hand(s.epoch, s.deals, s.rank, s.world, s.used)
        while chunk := list(islice(hand, s.chunk)):
            yield chunk


class Stream:
    """An endless source of batches for one rank: ready(), then take(); where any rank is not ready, all call next_epoch().

    size     samples of a batch on this rank
    workers  processes that decode; 0: this one does.  Batches do not depend on it
    pad      True: every caption to max_tokens; False: to the longest of its batch
    strict   the first sample that cannot be used raises ValueError
    skipped  how often each reason left a sample out so far, names: the first of each
    """

    def __init__(self, dataset: Any, tokenizer: Any, order: Order, size: int, *, image_size: int, max_tokens: int,
                 rank: int = 0, world: int = 1, workers: int = 0, pad: bool = False, strict: bool = False):
        if len(dataset) < size * world:
            raise ValueError(f"batch: expected at most {len(dataset)}, the examples of {dataset.name}, got {size * world}")
        self.dataset, self.order, self.size, self.max_tokens = dataset, order, size, max_tokens
        self.rank, self.world, self.pad, self.strict = rank, world, pad, strict
        self.epoch, self.used = 0, 0
        self.deals: tuple[Deal, ...] = ()
        self.skipped: Counter[str] = Counter()
        self.names: dict[str, list[str]] = {}
        self.chunk = min(size, 16)
        ahead = max(2, math.ceil(2 * size / (self.chunk * workers))) if workers else None
        decoder: Any = Decoder(dataset, tokenizer, image_size, max_tokens)
        tasks: Any = Tasks(self)
        self.loader = DataLoader(decoder, batch_sampler=tasks, num_workers=workers, collate_fn=together, prefetch_factor=ahead,
                                 persistent_workers=workers > 0, worker_init_fn=let_go)
        self.source: Iterator | None = None
        self.buffer: deque[Decoded] = deque()
        self.good = 0

    def ready(self) -> bool:
        """Whether this epoch has another batch for this rank; waits until it is decoded."""
        if self.source is None:
            self.source = iter(self.loader)
        while self.good < self.size:
            chunk = next(self.source, None)
            if chunk is None:
                return False
            images, samples = chunk
            rows = iter(images if images is not None else ())
            for sample in samples:
                good = not sample.reason
                self.buffer.append(sample._replace(image=next(rows)) if good else sample)
                self.good += good
        return True

    def take(self) -> Batch:
        """The next batch; ready() must have said yes."""
        samples: list[Decoded] = []
        while len(samples) < self.size:
            sample = self.buffer.popleft()
            self.used += 1
            if sample.reason:
                self.leave_out(sample)
            else:
                samples.append(sample)
        self.good -= self.size
        length = self.max_tokens if self.pad else max(len(s.ids) for s in samples)
        tokens = torch.zeros(self.size, length, dtype=torch.int64)
        mask = torch.zeros(self.size, length, dtype=torch.bool)
        for row, sample in enumerate(samples):
            tokens[row, : len(sample.ids)] = torch.tensor(sample.ids)
            mask[row, : len(sample.ids)] = True
        images = torch.stack([s.image for s in samples if s.image is not None])
        return Batch(images, tokens, mask, [s.item for s in samples], sum(s.dropped > 0 for s in samples),
                     sum(s.dropped for s in samples))

    def leave_out(self, sample: Decoded) -> None:
        if self.strict:
            raise ValueError(f"{self.dataset.name}: {sample.name or sample.reason} (strict)")
        self.skipped[sample.reason] += 1
        if len(first := self.names.setdefault(sample.reason, [])) < 3:
            first.append(sample.name)

    def next_epoch(self) -> None:
        """What did not fill a batch is left out, as in the reference; bad samples in it are counted all the same."""
        for sample in self.buffer:
            if sample.reason:
                self.leave_out(sample)
        self.go_to(self.epoch + 1, 0, ())

    def go_to(self, epoch: int, used: int, deals: Sequence[Deal]) -> None:
        """Stand where `used` samples of this rank's hand, after these deals, have been used."""
        self.epoch, self.used, self.deals = epoch, used, tuple(deals)
        self.buffer.clear()
        self.good, self.source = 0, None


def restore(stream: Stream, epoch: int, deals: Sequence[Sequence[int]], used: Sequence[int]) -> None:
    """Put a stream where a checkpoint left all ranks; with another number of ranks, what is left is dealt anew."""
    before = [Deal(tuple(deal)) for deal in deals]
    if len(used) == stream.world:
        stream.go_to(epoch, used[stream.rank], before)
    else:
        stream.go_to(epoch, 0, [*before, Deal(tuple(used))])
