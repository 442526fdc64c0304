"""Level "losses": the alignment (eqs. 2-5) and both losses (eqs. 1, 6), under every option and at every knife edge.

B batch, L tokens, P patches, D joint width.
"""

import math

import numpy as np

from parity import oracle
from parity.vectors.cases.core import Definition, Draw, Function, lengths, number
from sparc_ref import align_patches, fine_grained_loss, global_loss

ALIGN = {"sigma": None, "similarity": "dot", "align": "minmax", "threshold_on": "minmax", "flat": "uniform", "ties": "share"}
FINE = {"reduction": "sample", **ALIGN}
AXES = {"v": "BPD", "t": "BLD", "mask": "BL", "theta": "", "loss": "", "c": "BLD", "grouped": "BLD", "logits_vt": "BLL",
        "logits_tv": "BLL", "loss_vt": "BL", "loss_tv": "BL"}
AXES |= dict.fromkeys(("similarity", "minmax", "sparse", "weights"), "BLP")

FLAGS = {
    "ordinary": "keeps the margins: no ties, no flat rows, nothing within 1e-4 of the threshold",
    "sigma_hit": "a value that is exactly sigma: > in place of >=, or an epsilon in eq. 2's denominator",
    "ties": "several patches share a row's minimum or maximum: who gets its gradient",
    "flat": "every patch of a row is alike, eq. 2 is 0/0: NaN in place of a stated answer",
    "one_patch": "P = 1, every row is flat",
    "one_token": "L_i = 1: the token has nothing to be told apart from",
    "all_padding": "a caption without a real token: 0/0 in means and norms, or a softmax over nothing",
    "padding": "padded tokens that hold zeros, other words, or numbers beyond all bounds: they must change nothing",
    "temperature": "1/tau at an end of its range or beyond: clamped, squared, inverted or hard-coded scales",
    "one_sample": "B = 1: statistics of a batch that has one sample",
    "half": "inputs that float16 or bfloat16 hold exactly: similarity, norms, softmax and loss belong in float32",
    "norms": "patches or tokens of very different length: cosine for dot, normalised patches averaged, epsilons in norms",
    "range": "similarities so close, or so large, that an epsilon or a missing max-subtraction shows",
    "empty": "no weight reaches sigma: eq. 4 is 0/0",
}


def _fine(x, o):
    loss, trace, back = fine_grained_loss(x["v"], x["t"], x["mask"], x["theta"], **o)
    return {"loss": loss}, trace, lambda ct: dict(zip(("v", "t", "theta"), _beyond_too(back, float(ct["loss"]))))


def _beyond_too(back, dloss):
    """back(dloss); where one gradient leaves a 16-bit range, which is an error, infinity for it and the others as they are."""
    try:
        return back(dloss)
    except ArithmeticError:
        return tuple(16.0 * d for d in back(dloss / 16))


def _fine_oracle(x, o):
    loss, stages = oracle.fine_grained_stages(x["v"], x["t"], x["mask"], x["theta"], **o)
    return {"loss": loss}, stages


def _align(x, o):
    c, trace, back = align_patches(x["t"], x["v"], x["mask"], **o)
    return {"c": c}, trace, lambda ct: dict(zip(("t", "v"), back(ct["c"])))


def _align_oracle(x, o):
    c, stages = oracle.align_stages(x["t"], x["v"], x["mask"], **o)
    return {"c": c}, stages


def _global(x, o):
    loss, trace, back = global_loss(x["v_bar"], x["t_bar"], x["theta"])
    return {"loss": loss}, trace, lambda ct: dict(zip(("v_bar", "t_bar", "theta"), _beyond_too(back, float(ct["loss"]))))


def _global_oracle(x, o):
    loss, stages = oracle.global_stages(x["v_bar"], x["t_bar"], x["theta"])
    return {"loss": loss}, stages


def _unit(x):
    size = np.sqrt(np.sum(x * x, -1, keepdims=True))
    return x / np.where(size == 0, 1.0, size)


def hold_alignment(x, o):
    """A function (t, v) -> c whose minimum, maximum and kept patches stay those of `x`: smooth, also at a knife edge."""
    key = _unit if o["similarity"] == "cosine" else lambda y: y
    similarity = lambda t, v: key(t) @ key(v).swapaxes(1, 2)  # noqa: E731
    s, patches = similarity(x["t"], x["v"]), x["v"].shape[1]
    sigma = 0.0 if o["align"] == "no_threshold" else 1 / patches if o["sigma"] is None else o["sigma"]

    def chosen(extreme):
        at = s == extreme(s, -1, keepdims=True)
        if o["ties"] == "first":
            at = np.arange(patches) == np.argmax(at, -1)[..., None]
        return at / at.sum(-1, keepdims=True)

    at_min, at_max = chosen(np.min), chosen(np.max)
    flat = np.min(s, -1, keepdims=True) == np.max(s, -1, keepdims=True)

    def stretched(s):
        lo, hi = np.sum(s * at_min, -1, keepdims=True), np.sum(s * at_max, -1, keepdims=True)
        y = np.where(flat, 1.0, s - lo) / np.where(flat, 1.0, hi - lo)
        return y / y.sum(-1, keepdims=True) if o["threshold_on"] == "weights" else y

    keep = stretched(s) >= sigma
    undefined = flat | (np.sum(stretched(s) * keep, -1, keepdims=True) == 0)
    instead = {"uniform": 1 / patches, "zero": 0.0, "nan": math.nan}[o["flat"]]

    def grouped(t, v):
        if o["align"] == "softmax":
            e = np.exp(similarity(t, v) - np.max(s, -1, keepdims=True))
            return e / e.sum(-1, keepdims=True) @ v
        y = stretched(similarity(t, v)) * keep
        a = np.where(undefined, instead, y / np.where(undefined, 1.0, y.sum(-1, keepdims=True)))
        return np.where(x["mask"][..., None], a, 0.0) @ v

    return grouped


def _hold_align(x, o):
    grouped = hold_alignment(x, o)
    return lambda y: {"c": np.where(x["mask"][..., None], grouped(y["t"], y["v"]), 0.0)}


def _hold_fine(x, o):
    real = np.where(x["mask"][..., None], x["t"], 0.0)
    grouped = hold_alignment(x | {"t": real}, {name: o[name] for name in ALIGN})
    mask = x["mask"]

    def loss(y):
        total = 0.0
        t = np.where(mask[..., None], y["t"], 0.0)
        c = grouped(t, y["v"])
        count = mask.sum()
        for i in range(len(t)):
            m = mask[i]
            z = np.exp(y["theta"]) * _unit(c[i, m]) @ _unit(t[i, m]).T
            for each in (z, z.T):
                if m.any():
                    top = each.max(1, keepdims=True)
                    ce = np.log(np.exp(each - top).sum(1)) + top[:, 0] - np.diagonal(each)
                    total = total + ce.sum() / 2 / (count if o["reduction"] == "token" else m.sum() * len(t))
        return {"loss": np.asarray(total)}

    return loss


FUNCTIONS = {
    "align_patches": Function("losses", _align, _align_oracle, AXES, "BPLD", _hold_align, padded=True),
    "fine_grained_loss": Function("losses", _fine, _fine_oracle, AXES, "BPLD", _hold_fine, padded=True),
    "global_loss": Function(
        "losses", _global, _global_oracle,
        {"v_bar": "BD", "t_bar": "BD", "theta": "", "loss": "", "logits": "BB", "loss_image": "B", "loss_text": "B"}, "BD",
    ),
}

B, L, P, D = 4, 5, 7, 6
TAU = 2.65625  # close to log(1/0.07)


def batch(seed, real=(5, 3, 2, 4), theta=TAU, coarse=False, patches=P):
    """A padded batch that hides nothing: unequal lengths, unequal norms."""
    draw = Draw(seed)
    normal = draw.coarse if coarse else draw.normal
    return {"v": normal(len(real), patches, D), "t": normal(len(real), L, D), "mask": lengths(L, *real), "theta": number(theta)}


def without_theta(x):
    """What align_patches takes."""
    return {name: value for name, value in x.items() if name != "theta"}


def cases():
    """Every ordinary case; the knife edges are in edges.py."""
    return list(_ordinary())


# Seeds are chosen so that minima, maxima and thresholds keep 0.01 of a row's range: bfloat16's rounding moves none of them.
SEEDS = {"base": 15786, "full": 17}


def _ordinary():
    base, full = batch(SEEDS["base"]), batch(SEEDS["full"], (L,) * B)
    options = {
        "default": {},
        "token_reduction": {"reduction": "token"},
        "sigma_zero": {"sigma": 0.0},
        "sigma_0375": {"sigma": 0.375},
        "cosine": {"similarity": "cosine"},
        "no_threshold": {"align": "no_threshold"},
        "softmax": {"align": "softmax"},
        "threshold_on_weights": {"threshold_on": "weights"},
        "cosine_softmax": {"similarity": "cosine", "align": "softmax"},
        "cosine_weights": {"similarity": "cosine", "threshold_on": "weights"},
        "token_softmax": {"reduction": "token", "align": "softmax"},
        "token_weights_cosine": {"reduction": "token", "threshold_on": "weights", "similarity": "cosine"},
        "flat_zero_unused": {"flat": "zero"},
        "ties_first_unused": {"ties": "first"},
    }
    for name, changed in options.items():
        yield Definition(f"fine_{name}", "fine_grained_loss", base, FINE | changed)
    yield Definition("fine_no_padding", "fine_grained_loss", full, FINE,
                     note="Hides every fault of padding; tells whether the rest is right.")
    for name, changed in options.items():
        if "reduction" not in changed and "unused" not in name:
            yield Definition(f"align_{name}", "align_patches", without_theta(base), ALIGN | changed)
