"""What a loss with named deviations comes to, row by row in plain torch: the zoo's labels are checked against this.

Shares nothing with the checker.  A deviation is "stage.name" or "stage.name=value"; several make a dict name -> value.
"""

import math

import torch

NAN = math.nan


def parse(deviations):
    """["threshold.constant=0.3", "norm.missing"] -> {"threshold.constant": 0.3, "norm.missing": None}"""
    named = {}
    for text in deviations:
        name, _, value = text.partition("=")
        try:
            named[name] = float(value) if value else None
        except ValueError:
            named[name] = value
    return named


def unit(x):
    return x / torch.sqrt((x * x).sum(-1, keepdim=True).clamp_min(1e-24))


def row_weights(row, dev, sigma):
    """One row of similarities -> its weights, eqs. 2-4."""
    patches = len(row)
    even = torch.full_like(row, 1 / patches).detach()
    if "weights.softmax" in dev:
        return torch.softmax(row, 0)
    if "weights.raw" in dev:
        if bool(row.sum() == 0):
            return row
        return row / row.sum() if dev["weights.raw"] == "normalised" else row
    if "minmax.missing" in dev:
        h = row
    else:
        lo, hi = row.amin(), row.amax()
        if bool(hi == lo):
            if "minmax.nan_on_flat" in dev:
                return row * NAN
            return row * 0 if "minmax.epsilon" in dev else even
        h = (row - lo) / (hi - lo + (dev.get("minmax.epsilon") or 0.0))
    if "weights.softmax_minmax" in dev and dev["weights.softmax_minmax"] == "s_hat":
        return torch.softmax(h, 0)
    sigma = dev.get("threshold.constant", sigma)
    if "threshold.on_weights" in dev:
        h = h / h.sum()
    if "threshold.absent" not in dev:
        h = h * (h > sigma if "threshold.strict" in dev else h >= sigma)
    if "weights.softmax_minmax" in dev:
        return torch.softmax(h, 0)
    return h / h.sum() if bool(h.sum() != 0) else even


def group(keys, values, dev, sigma):
    """keys (N,D) average the values (M,D) that resemble them -> (N,D)"""
    like = unit(values) if "similarity.cosine" in dev else values
    s = (unit(keys) if "similarity.tokens_normalised" in dev else keys) @ like.T
    if "similarity.detached" in dev:
        s = s.detach()
    a = torch.stack([row_weights(row, dev, sigma) for row in s])
    if "weights.detached" in dev:
        a = a.detach()
    return a @ (unit(values) if "grouping.normalised_patches" in dev else values)


def cross_entropy(z, keep, smoothing=0.0):
    """Row j should pick column j among the columns kept; its own column always takes part.      z (N,N), keep (N,) -> (N,)

    smoothing: the share of the label that is spread over all of them
    """
    part = keep | torch.eye(len(z), dtype=torch.bool)
    spread = torch.where(part, z, 0.0).sum(1) / part.sum(1)
    z = torch.where(part, z, -math.inf)
    return torch.logsumexp(z, 1) - (1 - smoothing) * torch.diagonal(z) - smoothing * spread


def directions(z, keep, dev, vt="vt", tv="tv"):
    one, two = (cross_entropy(y, keep, dev.get("loss.smoothing", 0.0)) for y in (z, z.T))
    only = dev.get("loss.one_direction")
    both = (2 * one if only == vt else 2 * two) if only else one + two
    return both / 2 * dev.get("loss.factor", 1.0)


def fine_rows(v, t, mask, theta, dev):
    """The loss of every row of every caption, both directions together.      -> (B,L)"""
    scale = 1 / dev["logits.temperature_constant"] if "logits.temperature_constant" in dev else torch.exp(theta)
    grouped = torch.stack([group(t_i, v_i, dev, 1 / v.shape[1]) for v_i, t_i in zip(v, t)])
    c = grouped if {"norm.missing", "norm.missing_c"} & dev.keys() else unit(grouped)
    u = t if {"norm.missing", "norm.missing_t"} & dev.keys() else unit(t)
    rows = torch.zeros(mask.shape, dtype=v.dtype)
    if "logits.batch_negatives" in dev:
        every = mask | ("logits.padding_not_masked" in dev)
        z = scale * c.reshape(-1, c.shape[-1]) @ u.reshape(-1, u.shape[-1]).T
        return directions(z, every.reshape(-1), dev).reshape(mask.shape)
    for i, keep in enumerate(mask):
        z = scale * c[i] @ u[i].T
        if "logits.padding_filled_zero" in dev:
            z = torch.where(keep[:, None] & keep, z, 0.0)
            keep = torch.ones_like(keep)
        if "logits.padding_not_masked" in dev:
            keep = torch.ones_like(keep)
        rows[i] = directions(z, keep, dev)
    return rows


def fine_grained(v, t, mask, theta, dev):
    """Eq. 6 with deviations.      v (B,P,D), t (B,L,D), mask (B,L) -> ()"""
    if "edge.no_gradient" in dev:
        named = (("v", v), ("t", t), ("theta", theta))
        v, t, theta = (x.detach() if dev["edge.no_gradient"] == name else x for name, x in named)
    if not dev.keys() & {"logits.padding_not_masked", "reduction.mean_all"}:
        t = torch.where(mask[..., None], t, 1.0)          # padding holds something harmless
    if "similarity.patches_group" in dev:
        each = []
        for v_i, t_i, keep in zip(v, t, mask):
            if not keep.any():
                each.append(v_i.sum() * 0)
                continue
            c = unit(group(v_i, t_i[keep], dev, 1 / int(keep.sum())))
            z = torch.exp(theta) * unit(v_i) @ c.T
            each.append(directions(z, torch.ones(len(v_i), dtype=torch.bool), dev).mean())
        return torch.stack(each).mean()
    rows = fine_rows(v, t, mask, theta, dev)
    if "reduction.mean_all" in dev:
        return rows.mean()
    rows = torch.where(mask, rows, 0.0)
    if "reduction.masked_over_all" in dev:
        return rows.mean()
    if "reduction.token" in dev:
        return rows.sum() / mask.sum().clamp_min(1)
    each = rows.sum(1) / mask.sum(1).clamp_min(1)
    if dev.get("edge.all_padding") == "shifts":           # the mean is over captions that have tokens
        return each.sum() / mask.any(1).sum().clamp_min(1)
    return each.sum() if "reduction.sum" in dev else each.mean()


def global_pairs(v_bar, t_bar, theta, dev):
    """Eq. 1 with deviations.      v_bar, t_bar (B,D) -> ()"""
    scale = 1 / dev["global.temperature_constant"] if "global.temperature_constant" in dev else torch.exp(theta)
    z = scale * unit(v_bar) @ unit(t_bar).T
    return directions(z, torch.ones(len(z), dtype=torch.bool), {
        "loss.one_direction": dev.get("global.one_direction"), "loss.factor": dev.get("global.factor", 1.0)}).mean()


def pool(v, t, mask, dev):
    """The pooled embeddings that an implementation makes from patches and real tokens.      -> (B,D), (B,D)"""
    if "global.pools_normalised" in dev:
        v, t = unit(v), unit(t)
    if "global.pools_padding" in dev:
        return v.mean(1), t.mean(1)
    real = torch.where(mask[..., None], t, 0.0)
    return v.mean(1), real.sum(1) / mask.sum(1, keepdim=True).clamp_min(1)


def poisoned(batch, dev):
    """Do these deviations turn loss or gradient into NaN on this batch?"""
    mask, t, flat = batch.mask, batch.t, batch.flat
    padded, alone = not bool(mask.all()), bool((~mask).all(1).any())
    zeros = bool(((t == 0).all(-1) & ~mask).any())
    return (
        (padded and bool({"minmax.nan_from_padding", "logits.nan_all_masked_rows"} & dev.keys()))
        or (alone and dev.get("edge.all_padding") == "poison")
        or (zeros and "edge.zero_padding" in dev)
        or ((flat or zeros) and dev.get("edge.nan_gradient") == "flat")
    )
