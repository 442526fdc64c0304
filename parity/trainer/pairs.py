"""Every picture against every caption of all ranks: scores in blocks, and the cross-entropy both ways.

B samples on all ranks, b on this one, m of a block; L tokens, D joint width.  Shares no line with sparc_ref.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from parity.trainer import distributed

BLOCK = 1 << 24                                           # numbers in a block of pairs, unless a chunk is given: 64 MB


@dataclass(frozen=True)
class How:
    """How it is computed, not what.

    form, chunk  global_loss's; fine_chunk: samples of MGCA's token alignment at a time; pair_chunk: other samples in a block
    """

    form: str = "plain"
    group: Any = None
    chunk: int = 1024
    fine_chunk: int | None = None
    pair_chunk: int | None = None


class Pairs:
    """The cross-entropy of this rank's pictures and captions, of pairs whose caption has a real token (real (b,)).

    rows(z)     z (b,B) own samples against all -> (b,), each row's own place the label
    columns(z)  z (b,B) own pictures against all captions -> (b,) of own captions, over the pictures of all ranks
    mean(each)  each (b,) -> (), as loss.py says
    """

    def __init__(self, real: Tensor, sizes: list[int], group: Any):
        self.real, self.sizes, self.group = real, sizes, group
        rank, self.world = distributed.place(group)
        self.own = torch.arange(len(real), device=real.device)
        self.place = self.own + sum(sizes[:rank])
        self.all = of_all(real, sizes, group)

    def rows(self, z: Tensor) -> Tensor:
        log_p = torch.log_softmax(torch.where(self.all | ~self.real[:, None], z, -torch.inf), -1)
        return torch.where(self.real, -log_p[self.own, self.place], 0)

    def columns(self, z: Tensor) -> Tensor:
        lse = LogSumOverRanks.apply(torch.where(self.real[:, None], z, -torch.inf), self.group)[self.place]
        return torch.where(self.real, lse - z[self.own, self.place], 0)

    def mean(self, each: Tensor) -> Tensor:
        return each.sum() * self.world / self.all.sum().clamp(min=1)


class LogSumOverRanks(torch.autograd.Function):
    """log sum_i exp z_ij over the rows of all ranks.      z (b,B) -> (B,), equal on all ranks

    Backward: what all ranks ask of a column is summed and given to the rows of all, as gather's is.
    """

    @staticmethod
    def forward(ctx, z, group):
        lse = log_sum_over_ranks(z, group)
        ctx.save_for_backward(z, lse)
        ctx.group = group
        return lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dlse):
        z, lse = ctx.saved_tensors
        dlse = distributed.total(dlse, ctx.group)
        return torch.where(lse.isfinite(), dlse * (z - lse).exp(), 0), None


def log_sum_over_ranks(z: Tensor, group: Any) -> Tensor:
    """The same without a gradient."""
    top = distributed.largest(z.amax(0), group)
    top = torch.where(top.isfinite(), top, 0)             # a column of nothing but -inf stays that
    return top + distributed.total((z - top).exp().sum(0), group).log()


def in_blocks(block: Callable, own: Sequence[Tensor], others: Sequence[Tensor], row: int, size: int | None) -> Tensor:
    """block(*own, *part of others) -> (b,m), the others some at a time, and again in backward where there are several blocks.

    others: (B,...) each; row: numbers of a block for one of them; size: how many make a block, None: about BLOCK numbers
    """
    size = max(1, BLOCK // row) if size is None else size
    parts = list(zip(*(x.split(size) for x in others)))
    if len(parts) == 1:
        return block(*own, *parts[0])
    return torch.cat([checkpoint(block, *own, *part, use_reentrant=False, preserve_rng_state=False) for part in parts], 1)


def of_all(flags: Tensor, sizes: list[int], group: Any) -> Tensor:
    """Every rank's flags.      (b,...) bool -> (B,...)"""
    return distributed.gather(flags.to(torch.uint8), sizes, group).bool()


def of_one_length(t: Tensor, mask: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """Captions padded to the longest of all ranks.      t (b,L,D), mask (b,L)"""
    more = distributed.longest(mask.shape[1], mask.device, group) - mask.shape[1]
    if not more:
        return t, mask
    return torch.nn.functional.pad(t, (0, 0, 0, more)), torch.nn.functional.pad(mask, (0, more))
