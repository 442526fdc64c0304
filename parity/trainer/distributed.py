"""What ranks tell each other.  A rank is one of the processes that train one model on parts of one batch.

`group` is a process group of torch.distributed, or None for the default one; where none has been set up, there is one rank,
and every function here is the identity.  Ranks may hold batches of different sizes.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def place(group=None) -> tuple[int, int]:
    """This process's rank and how many there are."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)


def batch_sizes(batch: int, device: torch.device, group=None) -> list[int]:
    """How many samples each rank holds.  Raises ValueError, on every rank, if one of them holds none."""
    _, world = place(group)
    if world == 1:
        return [batch]
    each = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world)]
    dist.all_gather(each, torch.tensor([batch], device=device), group=group)
    sizes = torch.cat(each).tolist()
    if 0 in sizes:
        raise ValueError(f"batch: expected at least one sample on every rank, got {sizes}")
    return sizes


def gather(x: Tensor, sizes: list[int], group=None) -> Tensor:
    """Every rank's x, one after the other, with its gradient.      x (b,D), sizes: every rank's b -> (B,D)

    Backward: what all ranks ask of a sample is summed and given to the rank that holds it.
    """
    return x if len(sizes) == 1 else _Gather.apply(x, sizes, group)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, sizes, group):
        ctx.sizes, ctx.group = sizes, group
        longest = max(sizes)                              # collectives want equal shapes: pad, then cut
        padded = x.new_zeros(longest, *x.shape[1:])
        padded[: len(x)] = x
        every = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(every, padded, group=group)
        return torch.cat([part[:size] for part, size in zip(every, sizes)])

    @staticmethod
    def backward(ctx, dy):
        dy = dy.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(dy, group=ctx.group)
        start = sum(ctx.sizes[: dist.get_rank(ctx.group)])
        return dy[start : start + ctx.sizes[dist.get_rank(ctx.group)]], None, None


def total(x: Tensor, group=None) -> Tensor:
    """The sum of x over all ranks, without a gradient.      x () -> ()"""
    x = x.detach().clone()
    if place(group)[1] > 1:
        dist.all_reduce(x, group=group)
    return x


def largest(x: Tensor, group=None) -> Tensor:
    """The largest over all ranks, entry by entry, without a gradient."""
    x = x.detach().clone()
    if place(group)[1] > 1:
        dist.all_reduce(x, op=dist.ReduceOp.MAX, group=group)
    return x


def longest(length: int, device: torch.device, group=None) -> int:
    """The largest of all ranks' numbers."""
    return length if place(group)[1] == 1 else int(largest(torch.tensor([length], device=device), group))


@torch.no_grad()
def mean_gradients(model: nn.Module, group=None) -> None:
    """Replace every gradient by its mean over ranks, as DistributedDataParallel does; one message for each dtype.

    Those of parameters in shards are that mean already.
    """
    _, world = place(group)
    if world == 1:
        return
    leaves = [p for _, p in sorted(model.named_parameters()) if not isinstance(p, DTensor)]
    for p in leaves:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad  # every rank must send the same shapes
    for dtype in sorted({p.dtype for p in leaves}, key=str):
        grads = [p.grad for p in leaves if p.dtype == dtype and p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in grads])
        dist.all_reduce(flat, group=group)
        flat /= world
        for g, mean in zip(grads, flat.split([g.numel() for g in grads])):
            g.copy_(mean.view_as(g))
