"""SPARC's losses in torch, for one process or for many: global (eq. 1) over the batch of all ranks, fine-grained (eq. 6).

B batch of all ranks, b of this one, L tokens, P patches, D joint width.  Shares no line with sparc_ref; `stages` carry the
names of its trace.  At least float32 inside, whatever the inputs' dtype and whether autocast is on.

What a rank returns
    Each rank's L_r is such that the mean over ranks of L_r is the loss L of the whole batch.  Then the mean over ranks of
    the parameters' gradients, which is what DistributedDataParallel takes, is L's gradient.  For the gradient that arrives
    at a sample's embedding on the rank that holds it is the sum over all ranks q of dL_q (gather's backward adds them up),
    so that with W ranks the mean of the parameters' gradients is 1/W d(sum_q L_q) = dL.  "plain": every L_r is L.  Others:
    L_r is W/B times the sum over this rank's samples, for any b.
    The classic fault is to gather without a gradient, or to add up where DistributedDataParallel takes the mean: 1/W or W
    times the gradient, which Adam hides until weight decay, clipping or the fine-grained loss meet it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from parity.trainer import distributed

if TYPE_CHECKING:
    from sparc_ref import SPARCConfig

CHOICES = {
    "form": ("plain", "gathered", "chunked"),
    "reduction": ("sample", "token"),
    "similarity": ("dot", "cosine"),
    "align": ("minmax", "no_threshold", "softmax"),
    "threshold_on": ("minmax", "weights"),
    "flat": ("uniform", "zero", "nan"),
    "ties": ("share", "first"),
}


def sparc_loss(
    embeddings: dict[str, Tensor],
    mask: Tensor,
    theta: Tensor,
    theta_fine: Tensor | None,
    config: SPARCConfig,
    *,
    form: str = "plain",
    group=None,
    chunk: int = 1024,
    fine_chunk: int | None = None,
    compiled: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 7: lambda_g L_g + lambda_f L_f of a model's output.      -> loss (), stages of both, loss_global, loss_fine

    embeddings: v (b,P,D), t (b,L,D), v_bar, t_bar (b,D); mask (b,L) bool; theta_fine None: theta serves both.
    form, chunk: global_loss's; fine_chunk, compiled: fine_grained_loss's.  Over ranks, see the head of this file.
    """
    loss, stages = global_loss(embeddings["v_bar"], embeddings["t_bar"], theta, form=form, group=group, chunk=chunk)
    stages = {"loss_global": loss} | stages
    loss = config.lambda_g * loss
    if config.lambda_f:
        options = {name: getattr(config, name) for name in ("sigma", "similarity", "align", "threshold_on", "flat", "ties")}
        fine, more = fine_grained_loss(
            embeddings["v"], embeddings["t"], mask, theta if theta_fine is None else theta_fine,
            reduction=config.reduction, chunk=fine_chunk, group=group, compiled=compiled, **options,
        )  # fmt: skip
        loss = loss + config.lambda_f * fine
        stages |= {"loss_fine": fine} | more
    return loss, stages


def reported(loss: Tensor, group=None) -> Tensor:
    """The loss of the whole batch, equal on all ranks, without a gradient: the mean of what the ranks returned."""
    return distributed.total(loss, group) / distributed.place(group)[1]


def global_loss(
    v_bar: Tensor, t_bar: Tensor, theta: Tensor, *, form: str = "plain", group=None, chunk: int = 1024
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 1: every picture finds its caption among the captions of all ranks, and every caption its picture.

    v_bar, t_bar (b,D) need not be normalised; theta = log(1/tau).  z_ij = phi(v_bar_i, t_bar_j) / tau
    form      "plain": every rank forms z whole, (B,B) | "gathered": its own rows and its own columns, two of (b,B) |
              "chunked": the same, `chunk` columns at a time, and again in backward, so that z is never whole in memory
    Returns loss (), stages: loss_image, loss_text, (B,) if "plain", else (b,); logits (B,B) or (b,B), if not "chunked".
    Over ranks, see the head of this file; ranks may differ in b.  Raises ValueError on wrong shapes or options.
    """
    _check(form=form)
    if v_bar.ndim != 2 or t_bar.shape != v_bar.shape:
        raise ValueError(f"v_bar, t_bar: expected (B,D) alike, got {tuple(v_bar.shape)} and {tuple(t_bar.shape)}")
    if form == "chunked" and chunk < 1:
        raise ValueError(f"chunk: expected a positive number of columns, got {chunk}")
    with torch.autocast(v_bar.device.type, enabled=False):
        v_hat, t_hat = (unit(wide(x)) for x in (v_bar, t_bar))
        theta = wide(theta)
        sizes = distributed.batch_sizes(len(v_hat), v_hat.device, group)
        v_all, t_all = (distributed.gather(x, sizes, group) for x in (v_hat, t_hat))
        if form == "plain":
            logits = theta.exp() * (v_all @ t_all.T)      # (B,B)
            own = torch.arange(len(v_all), device=logits.device)
            loss_image, loss_text = (F.cross_entropy(z, own, reduction="none") for z in (logits, logits.T))
            loss = (loss_image + loss_text).mean() / 2
            return loss, {"logits": logits, "loss_image": loss_image, "loss_text": loss_text}

        rank, world = distributed.place(group)
        start = sum(sizes[:rank])
        stages = {}
        if form == "gathered":
            own = torch.arange(start, start + len(v_hat), device=v_hat.device)
            stages["logits"] = theta.exp() * (v_hat @ t_all.T)  # (b,B)
            loss_image = F.cross_entropy(stages["logits"], own, reduction="none")
            loss_text = F.cross_entropy(theta.exp() * (t_hat @ v_all.T), own, reduction="none")
        else:
            loss_image = RowCrossEntropy.apply(v_hat, t_all, theta, start, chunk)
            loss_text = RowCrossEntropy.apply(t_hat, v_all, theta, start, chunk)
        loss = (loss_image + loss_text).sum() * (world / (2 * sum(sizes)))
        return loss, stages | {"loss_image": loss_image, "loss_text": loss_text}


class RowCrossEntropy(torch.autograd.Function):
    """l_i = log sum_j exp z_ij - z_i,start+i with z = exp(theta) x y', some columns of z at a time.

    x (b,D), y (B,D), theta (), start: whose column is row 0's own, chunk: how many columns -> (b,)
    With p = exp(z - log sum exp z), 1 taken off at a row's own column, and dl upstream:
    dx = exp(theta) (p dl) y,  dy = exp(theta) (p dl)' x,  dtheta = sum p dl z
    """

    @staticmethod
    def forward(ctx, x, y, theta, start, chunk):
        scale = theta.exp()
        top = x.new_full((len(x),), -torch.inf)           # the largest so far, and the sum of exp(z - top) so far
        rest = x.new_zeros(len(x))
        for columns in y.split(chunk):
            z = scale * (x @ columns.T)                   # (b,chunk)
            higher = torch.maximum(top, z.amax(1))
            rest = rest * (top - higher).exp() + (z - higher[:, None]).exp().sum(1)
            top = higher
        lse = top + rest.log()
        ctx.save_for_backward(x, y, theta, lse)
        ctx.start, ctx.chunk = start, chunk
        return lse - scale * (x * y[start : start + len(x)]).sum(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dl):
        x, y, theta, lse = ctx.saved_tensors
        scale = theta.exp()
        rows = torch.arange(len(x), device=x.device)
        dx, dy, dtheta = torch.zeros_like(x), torch.empty_like(y), torch.zeros_like(theta)
        for at in range(0, len(y), ctx.chunk):
            columns = y[at : at + ctx.chunk]
            z = scale * (x @ columns.T)                   # (b,chunk), as in forward
            own = rows + ctx.start - at                   # where in this chunk each row's own column is
            dz = (z - lse[:, None]).exp() - (own[:, None] == torch.arange(len(columns), device=x.device)).to(z.dtype)
            dz *= dl[:, None]
            dtheta += (dz * z).sum()
            dz *= scale
            dx += dz @ columns
            dy[at : at + ctx.chunk] = dz.T @ x
        return dx, dy, dtheta, None, None


def fine_grained_loss(
    v: Tensor,
    t: Tensor,
    mask: Tensor,
    theta: Tensor,
    *,
    reduction: str = "sample",
    sigma: float | None = None,
    similarity: str = "dot",
    align: str = "minmax",
    threshold_on: str = "minmax",
    flat: str = "uniform",
    ties: str = "share",
    chunk: int | None = None,
    group=None,
    compiled: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 6: every token finds its own group of patches among its caption's, and every group its token.

    v (b,P,D) patches, t (b,L,D) tokens, mask (b,L) bool, true = real token; theta = log(1/tau).  The options are the
    reference's: reduction "sample" | "token", sigma (None: 1/P), similarity "dot" | "cosine", align "minmax" |
    "no_threshold" | "softmax", threshold_on "minmax" | "weights", flat "uniform" | "zero" | "nan", ties "share" | "first".
    chunk: so many samples at a time, computed again in backward, so that memory is that of one chunk.
    compiled: by torch.compile, a few kernels for some hundred.
    Returns loss (), stages: similarity, minmax, sparse, weights (b,L,P), grouped (b,L,D), logits_vt, logits_tv (b,L,L) unless
    chunked; loss_vt, loss_tv (b,L).  Over ranks, see the head of this file; "token" counts the tokens of all ranks.
    Raises ValueError on wrong shapes or options.
    """
    _check(reduction=reduction, similarity=similarity, align=align, threshold_on=threshold_on, flat=flat, ties=ties)
    if v.ndim != 3 or t.ndim != 3 or t.shape[0] != v.shape[0] or t.shape[2] != v.shape[2]:
        raise ValueError(f"v, t: expected (B,P,D) and (B,L,D), got {tuple(v.shape)} and {tuple(t.shape)}")
    if mask.shape != t.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(f"mask: expected bool {tuple(t.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}")
    if sigma is not None and not 0 <= sigma <= 1:
        raise ValueError(f"sigma: expected a threshold in [0, 1] or None for 1/P, got {sigma}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk: expected a positive number of samples or None, got {chunk}")
    sigma = 0.0 if align == "no_threshold" else 1 / v.shape[1] if sigma is None else sigma
    options: dict[str, Any] = {"sigma": sigma, "similarity": similarity, "align": align, "threshold_on": threshold_on}
    options |= {"flat": flat, "ties": ties}
    with torch.autocast(v.device.type, enabled=False):
        theta = wide(theta)
        compute = compiled_token_losses() if compiled else token_losses
        if chunk is None:
            stages = compute(v, t, mask, theta, **options)
        else:
            def of_chunk(*inputs):
                stages = compute(*inputs, theta, **options)
                return stages["loss_vt"], stages["loss_tv"]

            parts = zip(v.split(chunk), t.split(chunk), mask.split(chunk))
            losses = [checkpoint(of_chunk, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
            stages = {name: torch.cat(each) for name, each in zip(("loss_vt", "loss_tv"), zip(*losses))}
        each = stages["loss_vt"] + stages["loss_tv"]      # (b,L), 0 at padding
        real = mask.to(each.dtype)
        _, world = distributed.place(group)
        if reduction == "token":
            loss = each.sum() * world / distributed.total(real.sum(), group).clamp(min=1) / 2
        else:
            whole = sum(distributed.batch_sizes(len(v), v.device, group))
            loss = (each.sum(1) / real.sum(1).clamp(min=1)).sum() * (world / (2 * whole))
        return loss, stages


@cache
def compiled_token_losses() -> Callable[..., dict[str, Tensor]]:
    return torch.compile(token_losses)


def token_losses(
    v: Tensor, t: Tensor, mask: Tensor, theta: Tensor, *, sigma: float, similarity: str, align: str, threshold_on: str,
    flat: str, ties: str,
) -> dict[str, Tensor]:  # fmt: skip
    """Eqs. 2-6 as far as each token's two losses.      v (b,P,D), t (b,L,D), mask (b,L), theta () -> stages"""
    v, t = wide(v), torch.where(mask[..., None], wide(t), 0)
    real, some = mask[..., None], mask.any(1)[:, None, None]
    key_t, key_v = (unit(t), unit(v)) if similarity == "cosine" else (t, v)
    s = key_t @ key_v.mT                                  # (b,L,P)
    stages = {"similarity": s}
    if align == "softmax":
        a = torch.softmax(s, -1)
    else:
        if ties == "first":
            lo, hi = s.min(-1, keepdim=True).values, s.max(-1, keepdim=True).values
        else:
            lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
        level = hi == lo                                  # eq. 2 would be 0/0
        s_hat = torch.where(level, 1, (s - lo) / torch.where(level, 1, hi - lo))
        x = s_hat / s_hat.sum(-1, keepdim=True) if threshold_on == "weights" else s_hat
        s_til = torch.where(x >= sigma, x, 0)
        sums = s_til.sum(-1, keepdim=True)
        none = sums == 0
        a = torch.where(none, 1 / s.shape[-1], s_til / torch.where(none, 1, sums))
        if flat != "uniform":
            a = torch.where(level | none, 0.0 if flat == "zero" else torch.nan, a)
        stages |= {"minmax": s_hat, "sparse": torch.where(level, 1, s_til) if threshold_on == "weights" else s_til}
    a = torch.where(real, a, 0)
    c = a @ v                                             # (b,L,D)
    logits = theta.exp() * (unit(c) @ unit(t).mT)  # (b,L,L)
    columns = mask[:, None, :] | ~some                    # an empty caption's rows are finite, then thrown away

    def own(z):
        log_p = torch.log_softmax(torch.where(columns, z, -torch.inf), -1)
        return torch.where(mask, -log_p.diagonal(dim1=1, dim2=2), 0)

    named = {"weights": a, "grouped": c, "logits_vt": logits, "logits_tv": logits.mT}
    return stages | named | {"loss_vt": own(named["logits_vt"]), "loss_tv": own(named["logits_tv"])}


def unit(x: Tensor) -> Tensor:
    """x / |x| over the last axis, without an epsilon, however short or long.  A vector of zeros has no direction: it stays as
    it is and gets no gradient."""
    top = x.detach().abs().amax(-1, keepdim=True)
    none = top == 0
    y = x / torch.where(none, 1, top)                     # |x| = top |x/top|: no square leaves the range
    return torch.where(none, 0, y / torch.where(none, 1, torch.linalg.vector_norm(y, dim=-1, keepdim=True)))


def wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _check(**options):
    for name, value in options.items():
        if value not in CHOICES[name]:
            raise ValueError(f"{name}: expected one of {', '.join(CHOICES[name])}; got {value!r}")
