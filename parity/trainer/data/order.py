"""In which order samples come: a function of seed and epoch alone, dealt to ranks like cards, and dealt anew to other ranks.

Nothing about workers, prefetching or ranks is in it: a rank's place is how many cards of its hand it has used.  A run that goes
on with another number of ranks deals those that nobody has used yet (a `Deal` says what was used), so that within an epoch none
comes twice and none is lost.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity.trainer.data.shards import ShardData

PSEUDO = 1000                                             # examples of other data that are shuffled like a shard, beside shards


@dataclass(frozen=True)
class Deal:
    """So many ranks, and how many samples of its hand each of them has used."""

    used: tuple[int, ...]


def sizes_of(dataset: Any) -> np.ndarray:
    """How many samples each part has that is read as one: shards, or the whole data set."""
    if isinstance(dataset, ShardData):
        return dataset.sizes
    if hasattr(dataset, "datasets"):                      # Joined
        parts = [sizes_of(d) for d in dataset.datasets]
        if any(isinstance(d, ShardData) for d in dataset.datasets):
            parts = [p if isinstance(d, ShardData) else np.diff([*range(0, len(d), PSEUDO), len(d)])
                     for p, d in zip(parts, dataset.datasets)]
            return np.concatenate(parts)
    return np.array([len(dataset)], np.int64)


@dataclass(frozen=True)
class Order:
    """sizes: of the parts; together: how many of them are shuffled through one another, and read from, at a time.

    Of one part, which is what everything but shards has, the order is the reference's (sparc_ref.data.Batches), bit for bit.
    """

    sizes: np.ndarray
    seed: int
    together: int = 64

    def blocks(self, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The samples of an epoch, block after block: (n,) int64, and a number in [0, 1) for each, which picks its caption."""
        rng = np.random.default_rng(np.random.SeedSequence((self.seed, epoch)))
        if len(self.sizes) == 1:
            yield rng.permutation(int(self.sizes[0])), rng.random(int(self.sizes[0]))
            return
        starts = np.concatenate([[0], np.cumsum(self.sizes)])
        parts = rng.permutation(len(self.sizes))
        for number, at in enumerate(range(0, len(parts), self.together)):
            items = [np.arange(starts[p], starts[p + 1]) for p in parts[at : at + self.together]]
            own = np.random.default_rng(np.random.SeedSequence((self.seed, epoch, number)))
            block = own.permutation(np.concatenate(items))
            yield block, own.random(len(block))

    def hand(self, epoch: int, deals: Sequence[Deal], rank: int, world: int, start: int = 0) -> Iterator[tuple[int, float]]:
        """What a rank gets of an epoch after these deals, from its start-th on.      -> sample, draw"""
        passed, left = [0] * len(deals), 0
        for items, draws in self.blocks(epoch):
            for n, deal in enumerate(deals):
                at = passed[n] + np.arange(len(items))
                passed[n] += len(items)
                ranks = len(deal.used)
                free = at // ranks >= np.asarray(deal.used)[at % ranks]
                items, draws = items[free], draws[free]
            at = left + np.arange(len(items))
            left += len(items)
            mine = (at % world == rank) & (at // world >= start)
            yield from zip(items[mine].tolist(), draws[mine].tolist())
