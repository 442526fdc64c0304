"""AdamW, its schedule, clipping, and one training step, with gradient accumulation that is exact for the global loss too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from parity.trainer import distributed
from parity.trainer.loss import reported
from parity.trainer.model import bare
from parity.trainer.objectives import objective_loss, unit

USED = ("v", "t", "v_bar", "t_bar")  # what the losses take of the model's output


def decays(name: str) -> bool:
    """Whether weight decay applies: to matrices only; biases, norms, positions, embeddings and theta are left alone."""
    return name.endswith(".weight") and "norm" not in name and "embedding" not in name


def make_adamw(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.2,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float = 1e-6,
    fused: bool | None = None,
) -> torch.optim.AdamW:
    """torch's AdamW with groups: what decays and what does not; over shards also what is whole.  fused None: on a GPU."""
    named = dict(bare(model).named_parameters())
    kinds: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, p in named.items():                         # what is in shards and what is whole share no group: torch refuses
        kinds.setdefault((decays(name), isinstance(p, DTensor)), []).append(p)
    groups = [{"params": kinds[kind], "weight_decay": weight_decay if kind[0] else 0.0} for kind in sorted(kinds, reverse=True)]
    fused = all(p.is_cuda for p in named.values()) if fused is None else fused
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused)


@torch.no_grad()
def clip(model: nn.Module, limit: float) -> Tensor:
    """Scale all gradients by one factor so that their joint L2 norm is at most `limit`.  Returns the norm before, ().

    torch's clip_grad_norm_ divides by norm + 1e-6; this one by the norm.
    """
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = total_norm(grads)
    if limit < math.inf:
        factor = torch.where(norm > limit, limit / norm, 1.0)
        whole = [g for g in grads if not isinstance(g, DTensor)]
        if whole:
            torch._foreach_mul_(whole, factor)            # a few kernels for all of them
        for g in grads:
            if isinstance(g, DTensor):
                g.mul_(factor)
    return norm


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The joint L2 norm of tensors, some of which may lie in shards on all ranks.      -> ()"""
    sharded = [x for x in tensors if isinstance(x, DTensor)]
    whole = [x for x in tensors if not isinstance(x, DTensor)]
    norms = [torch.nn.utils.get_total_norm(part) for part in (whole, sharded) if part]
    norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


_clip = clip  # train_step has an argument of that name


@torch.no_grad()
def clamp_theta(model: nn.Module) -> None:
    """Keep log(1/tau) within [0, log 100]."""
    for theta in thetas(model):
        theta.clamp_(0.0, math.log(100))


@torch.no_grad()
def after_update(model: nn.Module) -> None:
    """What is done to parameters after each update, outside of the gradient: thetas in range, prototypes of length one."""
    clamp_theta(model)
    for name, p in loss_params(model).items():
        if name == "mgca.prototypes":
            p.copy_(unit(p))


def thetas(model: nn.Module) -> list[nn.Parameter]:
    """theta, theta_fine where there is one, and the temperatures of an objective."""
    return [p for name, p in bare(model).named_parameters() if name.startswith("theta")]


def loss_params(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the losses use, by name; never in shards."""
    own = ("theta", "pacl.", "mgca.", "flair.", "logit_bias")
    return {name: p for name, p in bare(model).named_parameters() if name.startswith(own)}


def warmup_cosine(step: int, *, peak: float, warmup: int, steps: int, final: float = 0.0) -> float:
    """The learning rate of update `step` = 0, 1, ...: linear up to `peak` in `warmup` updates, then a cosine to `final`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * done))


def train_step(
    model: nn.Module,
    batch: tuple[Tensor, Tensor, Tensor],
    optimizer: torch.optim.Optimizer,
    lr: float,
    *,
    clip: float | None = 1.0,
    accumulate: int = 1,
    autocast: torch.dtype | None = None,
    group=None,
    **options,
) -> dict[str, Tensor]:
    """One update.      batch: images, tokens, mask of this rank -> {"loss": of the whole batch, "norm": before clipping}, ()

    model: a SPARC, or one that torch.compile or DistributedDataParallel wraps; over ranks without the latter, gradients are
    averaged here.  clip: the largest norm of the gradients, None for any.  accumulate, autocast, options: backward's.
    """
    for settings in optimizer.param_groups:
        settings["lr"] = lr
    optimizer.zero_grad()
    loss = backward(model, batch, accumulate=accumulate, autocast=autocast, group=group, **options)
    norm = _clip(model, math.inf if clip is None else clip)
    optimizer.step()
    after_update(model)
    return {"loss": loss, "norm": norm}


def backward(
    model: nn.Module,
    batch: tuple[Tensor, Tensor, Tensor],
    *,
    accumulate: int = 1,
    autocast: torch.dtype | None = None,
    group=None,
    scale: float = 1.0,
    last: bool = True,
    seen: dict[str, Tensor] | None = None,
    **options,
) -> Tensor:
    """Add the gradient of the whole batch's loss to every parameter.      -> loss of the whole batch, ()

    model: a SPARC, or one that torch.compile, DistributedDataParallel or fully_shard wraps.
    scale: a factor on the gradient, not on the loss that is returned; last: False where another batch of this update follows,
    which then brings the mean over ranks of both.  seen: filled with the losses' stages, without gradients.

    accumulate: into how many parts the batch is cut, so that the activations of one are in memory at a time.  Exact, though
    the global loss compares every picture with every caption (GradCache, arXiv 2101.06983): embed all parts without a
    graph, take the loss and its gradient on the embeddings, then embed each part again and send its gradient through.
    autocast: torch.bfloat16, say; None: as the parameters are.  options: form, chunk, fine_chunk, pair_chunk, step of
    objectives.objective_loss.
    """
    config, objective, device = bare(model).config, bare(model).objective, batch[0].device.type
    params = loss_params(model)
    no_sync = model.no_sync if isinstance(model, DistributedDataParallel) else nullcontext
    if not 1 <= accumulate <= len(batch[0]):
        raise ValueError(f"accumulate: expected 1 to {len(batch[0])} parts, one sample each at least, got {accumulate}")

    def embed(part):
        with torch.autocast(device, autocast, enabled=autocast is not None):
            out = model(*part)
        return {name: out[name] for name in USED}

    def loss_of(embeddings, params):
        loss, stages = objective_loss(embeddings, batch[2], params, config, objective, group=group, **options)
        if seen is not None:
            seen.update({name: x.detach() for name, x in stages.items()})
        return loss

    if accumulate == 1:
        with nullcontext() if last else no_sync():
            loss = loss_of(embed(batch), params)
            scaled(loss, scale).backward()
    else:
        parts = list(zip(*(x.tensor_split(accumulate) for x in batch)))
        with torch.no_grad():
            embedded = [embed(part) for part in parts]
        leaves = {name: torch.cat([e[name] for e in embedded]).requires_grad_() for name in USED}
        copies = {name: p.detach().clone().requires_grad_() for name, p in params.items()}
        loss = loss_of(leaves, copies)
        scaled(loss, scale).backward()
        given = {name: leaf.grad.tensor_split(accumulate) for name, leaf in leaves.items() if leaf.grad is not None}
        for i, part in enumerate(parts):
            final = i == len(parts) - 1
            with nullcontext() if final and last else no_sync():
                out = embed(part)
                roots, grads = [out[name] for name in given], [given[name][i] for name in given]
                if final:                                 # in the pass after which DistributedDataParallel takes its mean
                    used = [(params[name], copy.grad) for name, copy in copies.items() if copy.grad is not None]
                    roots, grads = roots + [p for p, _ in used], grads + [grad for _, grad in used]
                torch.autograd.backward(roots, grads)
    if no_sync is nullcontext and last:
        distributed.mean_gradients(model, group)
    return reported(loss, group)


def scaled(loss: Tensor, scale: float) -> Tensor:
    return loss if scale == 1 else loss * scale
