"""SPARC's losses in torch float64, with every deviation of deviations as a switch (switches).

Variant() is the paper.  The stages are functions of their own, so that a search can share what is equal, and take any
number of leading dimensions.  Rows N look for keys M: tokens for patches, or patches for tokens (similarity.patches_group).
"""

import math
from dataclasses import dataclass, field, replace

import torch

from parity.checker.diagnosis.switches import GlobalVariant, Variant, variant_of
from parity.checker.probes import Probe


@dataclass
class Result:
    """losses and grads as in probes.Answer; stages by sparc_ref's names, NumPy."""

    losses: dict[str, float]
    grads: dict[str, dict]
    stages: dict = field(default_factory=dict)


class Gate(torch.autograd.Function):
    """x forward, k times its gradient backward."""

    @staticmethod
    def forward(ctx, x, k):
        ctx.k = k
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return ctx.k * g, None


def through(x, name, o: Variant):
    """A path that gradients take, by the share of them that o.gates lets pass."""
    for gate, k in o.gates:
        if gate == name:
            x = Gate.apply(x, k)
    return x


def unit(x, eps=0.0, square_eps=0.0, gate="", o=None):
    """x / |x|, 0 for a zero vector and no gradient there.      (...,D) -> (...,D);  gate: the path through |x|"""
    square = (x * x).sum(-1, keepdim=True) + square_eps
    square = through(square, gate, o) if o is not None else square
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
    rows, keys = through(rows, "queries", o), through(keys, "keys", o)
    if o.token_norm:
        rows = unit(rows, eps)
    if o.cosine:
        keys = unit(keys, eps, gate="norm_key", o=o)
    s = rows @ keys.mT
    if o.scaled:
        s = s * through(scale, "tau_s", o)
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


def align(s, mask, patches, scale, o: Variant, width: int = 1):
    """Eqs. 2-4.      s (...,B,N,M) -> a, stages;  width: D"""
    eps = dict(o.eps)
    own_tau = math.sqrt(width) if o.own_tau == "sqrt(D)" else float(o.own_tau or 1.0)
    part = mask[..., None, :] if o.rows == "patches" and o.keys != "open" else None
    shut = part if o.keys == "masked" else None
    if o.weights in ("softmax", "softmax_cut"):
        a = torch.softmax((s if part is None else s.masked_fill(~part, -math.inf)) / own_tau, -1)
        if o.weights == "softmax_cut":
            a = _by_sum(torch.where(a >= sigma_of(o, mask, patches), a, 0.0), None, o, 0.0)
        return a, {}
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
        lo, hi = through(lo, "min", o), through(hi, "max", o)
        flat = (hi == lo) & torch.isfinite(hi)            # infinities at padding: no guard against them
        width = through(hi - lo, "width", o) + eps.get("range", 0.0)
        lo = through(lo, "shift", o)
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
    sharp = (scale if o.scaled else 1.0) / own_tau
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
    a, stages = align(s, mask, v.shape[-2], scale, o, v.shape[-1])
    if o.detach == "weights":
        a = a.detach()
    values = t if o.rows == "patches" else v
    values = through(values.detach() if o.detach == "values" else values, "values", o)
    c = a @ (unit(values) if o.unit_values else values)
    return c, {"similarity": s, **stages, "weights": a, "grouped": c}


def cosines(c, v, t, mask, o: Variant):
    """phi of vision rows and text columns, before the temperature.

    -> (...,B,N,N); with negatives from the batch (...,1,BN,BN); by position (...,N,B,B)
    """
    eps = [dict(o.eps).get(name, 0.0) for name in ("norm", "square")]
    q = v if o.rows == "patches" else t
    c, q = c.detach() if o.detach == "c" else c, q.detach() if o.detach == "t" else q
    q = through(q, "t", o)
    if o.no_norm not in ("both", "c"):
        c = bare_unit(c) if o.inf_padding and o.flat != "zero" else unit(c, eps[0], eps[1], "norm_c", o)
    if o.no_norm not in ("both", "t"):
        q = bare_unit(q) if o.nan_zero else unit(q, eps[0], eps[1], "norm_t", o)
    one, two = (q, c) if o.rows == "patches" else (c, q)
    one, two = torch.broadcast_tensors(one, two)
    if o.negatives == "batch":
        one, two = (x.reshape(*x.shape[:-3], 1, -1, x.shape[-1]) for x in (one, two))
    elif o.negatives == "position":
        one, two = one.transpose(-3, -2), two.transpose(-3, -2)
    gain = 1 / math.sqrt(c.shape[-1]) if o.gain == "1/sqrt(D)" else float(o.gain)
    return one @ two.mT if gain == 1 else gain * (one @ two.mT)


def left_out(mask, o: Variant):
    """Special tokens that do not count, (B,N) bool."""
    place, last = torch.arange(mask.shape[1]), mask.sum(1, keepdim=True) - 1
    one, two = place == 0, place == (mask.shape[1] - 1 if o.special == "ends" else last)
    return {"first": one.expand_as(mask), "last": two.expand_as(mask)}.get(o.special, one | two)


def column_mask(mask, patches, o: Variant):
    """Which rows are real, (B,N), and which columns, (...,1,N) as `cosines` lays them out."""
    real = torch.ones(mask.shape[0], patches, dtype=torch.bool) if o.rows == "patches" else mask
    columns = real
    if o.special and o.rows == "tokens":
        real = real & ~left_out(mask, o)
        columns = columns if o.special_rows else real
    if o.negatives == "batch":
        return real, columns.reshape(1, 1, -1)
    return real, columns.T[:, None, :] if o.negatives == "position" else columns[:, None, :]


def cross_entropy(z, columns, how, o: Variant, shut=None):
    """Each row should pick its own place.      z (...,N,N), columns (...,1,N) -> (...,N);  shut (...,1,N): never takes part"""
    own = torch.diagonal(z, dim1=-2, dim2=-1)
    eye = torch.eye(z.shape[-1], dtype=torch.bool)
    if how == "open":
        z = z if shut is None else torch.where(~shut | eye, z, -math.inf)
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
        z = torch.where(columns | eye, z, -math.inf)
        if o.reduction != "mean_all" and "loss" not in (o.inf_padding, o.nan_zero):  # padded rows count nowhere
            z = torch.where(columns.mT, z, 0.0)
    if o.contrast.startswith("sigmoid"):
        return pair_by_pair(z, eye, o)
    if o.contrast == "decoupled":
        return denominator_of_others(z, eye, o) - own
    log, own = through(torch.logsumexp(z, -1), "others", o), through(own, "own", o)
    if dict(o.eps).get("log"):
        return -torch.log(torch.exp(own - log) + dict(o.eps)["log"])
    if o.smoothing:
        return log - (1 - o.smoothing) * own - o.smoothing * label_spread(z, eye, o)
    return log - own


def pair_by_pair(z, eye, o: Variant):
    """Each pair is a yes or no by itself, -log sigmoid(+-(z + bias)).      (...,N,N) -> (...,N)"""
    there = torch.isfinite(z)
    x = torch.where(there, z, 0.0) + o.bias
    each = torch.where(there, torch.nn.functional.softplus(torch.where(eye, -x, x)), 0.0)
    return each.sum(-1) / there.sum(-1) if o.contrast == "sigmoid_mean" else each.sum(-1)


def denominator_of_others(z, eye, o: Variant):
    """log sum exp without the own pair; where no other is left, what o.alone says.      (...,N,N) -> (...,N)"""
    others = torch.where(eye, -math.inf, z)
    empty = ~torch.isfinite(others).any(-1, keepdim=True)
    log = torch.logsumexp(torch.where(empty, 0.0, others), -1)
    own = torch.diagonal(z, dim1=-2, dim2=-1)
    places = math.log(z.shape[-1]) if o.alone_places else 0.0
    nothing = own if o.alone == "zero" else torch.full_like(own, float(o.alone) + places)
    return torch.where(empty[..., 0], nothing, log)


def label_spread(z, eye, o: Variant):
    """The mean logit over which a smoothed label is spread.      (...,N,N) -> (...,N)"""
    there = torch.isfinite(z) & ~eye if o.smooth_others else torch.isfinite(z)
    mean = torch.where(there, z, 0.0).sum(-1) / there.sum(-1).clamp_min(1)
    return torch.where(there.any(-1), mean, torch.diagonal(z, dim1=-2, dim2=-1))


def per_row(cosine, mask, patches, scale, o: Variant):
    """Logits and cross-entropies.      -> loss_vt, loss_tv (...,B,N), logits"""
    real, columns = column_mask(mask, patches, o)
    gone = o.special and o.rows == "tokens" and not o.special_rows
    shut = ~column_mask(torch.ones_like(mask) & ~left_out(mask, o), patches, replace(o, special=""))[1] if gone else None
    z = cosine * through(scale, "tau", o)
    losses = []
    for x, how, path in ((z, o.open_vt, "vt"), (z.mT, o.open_tv, "tv")):
        ce = through(cross_entropy(x, columns, how, o, shut), path, o)
        if o.constant_rows:
            ce = ce + constant_of(o, scale[..., 0] if scale.ndim else scale)
        if o.negatives == "batch":
            ce = ce.reshape(*ce.shape[:-2], *real.shape)
        elif o.negatives == "position":
            ce = ce.mT
        losses.append(ce)
    return losses[0], losses[1], z


def constant_of(o: Variant, scale):
    """What is added to the loss."""
    return o.constant * (torch.log(scale) if o.constant_of else 1.0)


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
    return x / (length if o.nan_empty else length.clamp_min(1)) / (1 if o.reduction == "sum" else len(x))


def reduce(loss_vt, loss_tv, mask, patches, o: Variant, scale=None, share=None):
    """Eq. 6's sums.      (...,B,N) twice -> (...);  scale () is needed where it is in a constant;  share: shares(), if known"""
    share = shares(mask, patches, o) if share is None else share
    loss = {"both": (loss_vt + loss_tv) / 2, "vt": loss_vt, "tv": loss_tv}[o.direction]
    if not (o.nan_rows or o.nan_empty or "loss" in (o.nan_zero, o.inf_padding)):
        loss = torch.where(share > 0, loss, 0.0)
    loss = o.factor * (share * loss).sum((-2, -1))
    return loss if o.constant == 0 or o.constant_rows else loss + constant_of(o, scale)


def fine_grained(v, t, mask, theta, o: Variant):
    """Eq. 6 under a setting.      v (B,P,D), t (B,L,D), mask (B,L), theta () -> (), stages"""
    scale = torch.exp(theta) if o.tau is None else torch.as_tensor(1 / o.tau, dtype=torch.float64)
    c, stages = group(v, t, mask, scale, o)
    cosine = cosines(c, v, t, mask, o)
    loss_vt, loss_tv, z = per_row(cosine, mask, v.shape[-2], scale, o)
    stages |= {"logits_vt": z, "logits_tv": z.mT, "loss_vt": loss_vt, "loss_tv": loss_tv}
    return reduce(loss_vt, loss_tv, mask, v.shape[-2], o, scale), stages


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
