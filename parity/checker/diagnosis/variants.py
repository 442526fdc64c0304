"""SPARC's losses in torch float64, with every deviation of deviations as a switch (switches).

Variant() is the paper.  The stages are functions of their own, so that a search can share what is equal, and take any
number of leading dimensions.  Rows N look for keys M: tokens for patches, or patches for tokens (similarity.patches_group).
"""

import math
from dataclasses import dataclass, field

import torch

from parity.checker.diagnosis.switches import GlobalVariant, Variant, variant_of
from parity.checker.probes import Probe


@dataclass
class Result:
    """losses and grads as in probes.Answer; stages by sparc_ref's names, NumPy."""

    losses: dict[str, float]
    grads: dict[str, dict]
    stages: dict = field(default_factory=dict)


def unit(x, eps=0.0, square_eps=0.0):
    """x / |x|, 0 for a zero vector and no gradient there.      (...,D) -> (...,D)"""
    square = (x * x).sum(-1, keepdim=True) + square_eps
    zero = square == 0
    return torch.where(zero, 0.0, x / (torch.sqrt(torch.where(zero, 1.0, square)) + eps))


def bare_unit(x):
    """x / |x| as it stands: NaN for a zero vector."""
    return x / torch.sqrt((x * x).sum(-1, keepdim=True))


def similarity(v, t, mask, scale, o: Variant):
    """s (...,B,N,M), keys (...,B,M) true = takes part, or None."""
    eps = dict(o.eps).get("key_norm", 0.0)
    rows, keys = (v, t) if o.rows == "patches" else (t, v)
    if o.detach in ("tokens", "patches"):
        rows, keys = (
            x.detach() if (x is t) == (o.detach == "tokens") else x for x in (rows, keys)
        )
    if o.token_norm:
        rows = unit(rows, eps)
    if o.cosine:
        keys = unit(keys, eps)
    s = rows @ keys.mT
    if o.scaled:
        s = s * scale
    if o.detach == "similarity":
        s = s.detach()
    if o.inf_padding and o.rows == "tokens":
        s = s.masked_fill(~mask[..., None], -math.inf)
    return s


def sigma_of(o: Variant, mask, patches):
    """The threshold, a float or (B,1,1)."""
    if not isinstance(o.sigma, str):
        return o.sigma
    columns = mask.shape[-1] if o.rows == "patches" else patches
    if o.sigma == "keys" and o.rows == "patches" and o.keys == "masked":
        return 1 / mask.sum(-1).clamp_min(1).to(torch.float64)[..., None, None]
    return {"keys": 1 / columns, "columns": 1 / columns, "patches": 1 / patches, "none": 0.0}[o.sigma]


def align(s, mask, patches, scale, o: Variant):
    """Eqs. 2-4.      s (...,B,N,M) -> a, stages"""
    eps = dict(o.eps)
    part = mask[..., None, :] if o.rows == "patches" and o.keys != "open" else None
    shut = part if o.keys == "masked" else None
    if o.weights == "softmax":
        return torch.softmax(s if part is None else s.masked_fill(~part, -math.inf), -1), {}
    if o.weights in ("raw", "raw_sum"):
        a = s if part is None else torch.where(part, s, 0.0)
        total = a.sum(-1, keepdim=True)
        return (a / torch.where(total == 0, 1.0, total) if o.weights == "raw_sum" else a), {}
    stages = {}
    flat = torch.zeros_like(s[..., :1], dtype=torch.bool)
    s_hat = s
    if o.minmax:
        lo = (s if shut is None else s.masked_fill(~shut, math.inf)).amin(-1, keepdim=True)
        hi = (s if shut is None else s.masked_fill(~shut, -math.inf)).amax(-1, keepdim=True)
        if shut is not None:                              # a caption of nothing but padding
            empty = ~shut.any(-1, keepdim=True)
            lo, hi = torch.where(empty, 0.0, lo), torch.where(empty, 0.0, hi)
        if o.detach == "range":
            lo, hi = lo.detach(), hi.detach()
        flat = (hi == lo) & torch.isfinite(hi)            # infinities at padding: no guard against them
        width = hi - lo + eps.get("range", 0.0)
        if o.flat == "nan":
            s_hat = (s - lo) / width
        elif o.flat.startswith("nan_gradient"):
            s_hat = torch.where(flat, 0.0 if o.flat.endswith("zero") else 1.0, (s - lo) / width)
        else:
            s_hat = torch.where(flat, 0.0 if o.flat == "zero" else 1.0, (s - lo) / torch.where(flat, 1.0, width))
        stages["minmax"] = s_hat
    sigma = sigma_of(o, mask, patches)
    x = s_hat
    if o.on_weights:
        x = _by_sum(x if part is None else torch.where(part, x, 0.0), flat, o, 0.0)
    keep = x > sigma if o.strict else x >= sigma
    if o.sigma == "none":
        keep = torch.ones_like(keep)
    if o.inf_padding:                                     # NaN stays NaN, whichever way the threshold is written
        keep = keep | torch.isnan(x)
    if part is not None:
        keep = keep & part
    sharp = scale if o.scaled else 1.0
    if o.weights == "softmax_all":
        return torch.softmax(sharp * (s_hat if part is None else s_hat.masked_fill(~part, -math.inf)), -1), stages
    s_til = torch.where(keep, x, 0.0)
    stages["sparse"] = s_til
    if o.weights == "softmax_zeros":
        return torch.softmax(sharp * s_til, -1), stages
    if o.weights == "softmax_kept":
        return torch.softmax((sharp * s_til).masked_fill(~keep, -math.inf), -1), stages
    a = _by_sum(s_til, flat, o, eps.get("sum", 0.0))
    return (a * a.shape[-1] if o.weights == "mean" else a), stages


def _by_sum(s_til, flat, o, eps):
    """Eq. 4; where nothing is left, what o.flat says."""
    total = s_til.sum(-1, keepdim=True)
    empty = total == 0
    if o.flat == "nan":
        return s_til / (total + eps)
    a = s_til / torch.where(empty, 1.0, total + eps)
    if o.flat.endswith("zero"):
        return torch.where(empty, 0.0, a)
    return torch.where(empty, 1 / s_til.shape[-1], a)


def group(v, t, mask, scale, o: Variant):
    """Eqs. 2-5.      -> c (...,B,N,D), stages"""
    s = similarity(v, t, mask, scale, o)
    a, stages = align(s, mask, v.shape[-2], scale, o)
    if o.detach == "weights":
        a = a.detach()
    values = t if o.rows == "patches" else v
    values = values.detach() if o.detach == "values" else values
    c = a @ (unit(values) if o.unit_values else values)
    return c, {"similarity": s, **stages, "weights": a, "grouped": c}


def cosines(c, v, t, mask, o: Variant):
    """phi of vision rows and text columns, before the temperature.

    -> (...,B,N,N); with negatives from the batch (...,1,BN,BN); by position (...,N,B,B)
    """
    eps = [dict(o.eps).get(name, 0.0) for name in ("norm", "square")]
    q = v if o.rows == "patches" else t
    c, q = c.detach() if o.detach == "c" else c, q.detach() if o.detach == "t" else q
    if o.no_norm not in ("both", "c"):
        c = bare_unit(c) if o.inf_padding and o.flat != "zero" else unit(c, *eps)
    if o.no_norm not in ("both", "t"):
        q = bare_unit(q) if o.nan_zero else unit(q, *eps)
    one, two = (q, c) if o.rows == "patches" else (c, q)
    one, two = torch.broadcast_tensors(one, two)
    if o.negatives == "batch":
        one, two = (x.reshape(*x.shape[:-3], 1, -1, x.shape[-1]) for x in (one, two))
    elif o.negatives == "position":
        one, two = one.transpose(-3, -2), two.transpose(-3, -2)
    return one @ two.mT


def column_mask(mask, patches, o: Variant):
    """Which rows are real, (B,N), and which columns, (...,1,N) as `cosines` lays them out."""
    real = torch.ones(mask.shape[0], patches, dtype=torch.bool) if o.rows == "patches" else mask
    if o.negatives == "batch":
        return real, real.reshape(1, 1, -1)
    return real, real.T[:, None, :] if o.negatives == "position" else real[:, None, :]


def cross_entropy(z, columns, how, o: Variant):
    """Each row should pick its own place.      z (...,N,N), columns (...,1,N) -> (...,N)"""
    own = torch.diagonal(z, dim1=-2, dim2=-1)
    if how == "open":
        pass
    elif how == "zero":
        shut = ~columns | ~columns.mT if o.zero_rows else ~columns
        z = torch.where(shut, dict(o.eps).get("fill", 0.0), z)
        own = torch.diagonal(z, dim1=-2, dim2=-1)
    elif o.nan_rows:
        z = z.masked_fill(~columns | ~columns.mT, -math.inf)
        return -torch.diagonal(torch.log_softmax(z, -1), dim1=-2, dim2=-1)
    elif o.reduction == "mean_all" and o.padded_rows != "own":
        z = torch.where(columns, z, float(o.padded_rows))
        own = torch.diagonal(z, dim1=-2, dim2=-1)
    else:
        z = torch.where(columns | torch.eye(z.shape[-1], dtype=torch.bool), z, -math.inf)
        if o.reduction != "mean_all" and "loss" not in (o.inf_padding, o.nan_zero):  # padded rows count nowhere
            z = torch.where(columns.mT, z, 0.0)
    log = torch.logsumexp(z, -1)
    if dict(o.eps).get("log"):
        return -torch.log(torch.exp(own - log) + dict(o.eps)["log"])
    return log - own


def per_row(cosine, mask, patches, scale, o: Variant):
    """Logits and cross-entropies.      -> loss_vt, loss_tv (...,B,N), logits"""
    real, columns = column_mask(mask, patches, o)
    z = cosine * scale
    losses = []
    for x, how in ((z, o.open_vt), (z.mT, o.open_tv)):
        ce = cross_entropy(x, columns, how, o)
        if o.negatives == "batch":
            ce = ce.reshape(*ce.shape[:-2], *real.shape)
        elif o.negatives == "position":
            ce = ce.mT
        losses.append(ce)
    return losses[0], losses[1], z


def shares(mask, patches, o: Variant):
    """How much each row counts.      -> (B,N)"""
    real, _ = column_mask(mask, patches, o)
    some = real & mask.any(1, keepdim=True)               # a caption of padding alone contributes nothing
    x = some.to(torch.float64)
    if o.reduction == "mean_all":
        return torch.ones_like(x) / x.numel()
    if o.reduction == "masked_over_all":
        return x / x.numel()
    if o.reduction == "token":
        return x / x.sum().clamp_min(1)
    length = x.sum(1, keepdim=True)
    return x / (length if o.nan_empty else length.clamp_min(1)) / len(x)


def reduce(loss_vt, loss_tv, mask, patches, o: Variant):
    """Eq. 6's sums.      (...,B,N) twice -> (...)"""
    share = shares(mask, patches, o)
    loss = {"both": (loss_vt + loss_tv) / 2, "vt": loss_vt, "tv": loss_tv}[o.direction]
    if not (o.nan_rows or o.nan_empty or "loss" in (o.nan_zero, o.inf_padding)):
        loss = torch.where(share > 0, loss, 0.0)
    return o.factor * (share * loss).sum((-2, -1))


def fine_grained(v, t, mask, theta, o: Variant):
    """Eq. 6 under a setting.      v (B,P,D), t (B,L,D), mask (B,L), theta () -> (), stages"""
    scale = torch.exp(theta) if o.tau is None else torch.as_tensor(1 / o.tau, dtype=torch.float64)
    c, stages = group(v, t, mask, scale, o)
    cosine = cosines(c, v, t, mask, o)
    loss_vt, loss_tv, z = per_row(cosine, mask, v.shape[-2], scale, o)
    stages |= {"logits_vt": z, "logits_tv": z.mT, "loss_vt": loss_vt, "loss_tv": loss_tv}
    return reduce(loss_vt, loss_tv, mask, v.shape[-2], o), stages


def pools(v, t, mask, v_bar, t_bar, o: GlobalVariant):
    """The two global embeddings.      -> (B,D), (B,D)"""
    if o.vision != "given":
        v_bar = v[:, 0] if o.vision == "cls" else (unit(v) if o.vision == "unit" else v).mean(1)
    if o.text == "cls":
        t_bar = t[:, 0]
    elif o.text != "given":
        x = unit(t) if o.text == "unit" else t
        real = torch.ones_like(mask) if o.padding else mask
        t_bar = torch.where(real[..., None], x, 0.0).sum(1) / real.sum(1, keepdim=True).clamp_min(1)
    return v_bar, t_bar


def global_pairs(v, t, mask, theta, v_bar, t_bar, o: GlobalVariant):
    """Eq. 1 under a setting.      -> (), logits (B,B)"""
    v_bar, t_bar = pools(v, t, mask, v_bar, t_bar, o)
    z = (torch.exp(theta) if o.tau is None else 1 / o.tau) * unit(v_bar) @ unit(t_bar).T
    vt, tv = (torch.logsumexp(x, -1) - torch.diagonal(x) for x in (z, z.T))
    return o.factor * {"both": (vt + tv) / 2, "vt": vt, "tv": tv}[o.direction].mean(), z


INPUTS = ("v", "t", "theta", "v_bar", "t_bar")


def tensors(probe: Probe, grad: bool = False) -> dict[str, torch.Tensor]:
    """The probe's arrays as torch float64; mask as bool."""
    named = {name: torch.tensor(getattr(probe, name), dtype=torch.float64, requires_grad=grad) for name in INPUTS}
    return named | {"mask": torch.tensor(probe.mask)}


def evaluate(probe: Probe, fine: Variant | None = None, pairs: GlobalVariant | None = None, grad: bool = True) -> Result:
    """Losses, gradients and stages of the settings that are given."""
    x = tensors(probe, grad)
    losses, stages = {}, {}
    with torch.set_grad_enabled(grad):
        if fine is not None:
            losses["fine"], stages = fine_grained(x["v"], x["t"], x["mask"], x["theta"], fine)
        if pairs is not None:
            losses["global"], stages["global_logits"] = global_pairs(
                x["v"], x["t"], x["mask"], x["theta"], x["v_bar"], x["t_bar"], pairs
            )
    grads = {}
    for which, loss in losses.items() if grad else ():
        inputs = [x[name] for name in INPUTS]
        if not loss.requires_grad:
            grads[which] = {name: torch.zeros_like(y).numpy() for name, y in zip(INPUTS, inputs)}
            continue
        made = torch.autograd.grad(loss, inputs, allow_unused=True, retain_graph=True, materialize_grads=True)
        grads[which] = {name: g.numpy() for name, g in zip(INPUTS, made)}
    numbers = {name: y.detach().numpy() for name, y in stages.items()}
    return Result({which: float(loss.detach()) for which, loss in losses.items()}, grads, numbers)


def compute(probe: Probe, deviations=()) -> Result:
    """SPARC's losses with these deviations: ids, or Found where a value or a way is meant.

    Raises ValueError for an id that is unknown, lacks its value, or is no property of a single call.
    """
    fine, pairs = variant_of(deviations)
    return evaluate(probe, fine, pairs)
