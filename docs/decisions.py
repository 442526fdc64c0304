"""What each option of the paper changes, on one fixed random batch:  python docs/decisions.py

Prints the table of docs/method.md: how far loss and gradient move, relative to the default's, in float64. Embeddings are
Gaussian, at the paper's sizes of a sample (P = 196, D = 512); towers are those of the preset tiny with random parameters.
"""

from dataclasses import replace
from functools import cache

import numpy as np

from sparc_ref import PRESETS, fine_grained_loss, forward, init_params

LENGTHS = (12, 9, 7, 5, 4, 3, 2, 1)                       # real tokens of the captions, padded to 16
PADDED, P, D = 16, 196, 512
THETA = np.asarray(np.log(1 / 0.07))
MASK = np.arange(PADDED) < np.array(LENGTHS)[:, None]     # (B,L)


def embeddings(batch: str) -> tuple[np.ndarray, np.ndarray]:
    """v (B,P,D) and t (B,L,D).  "flat": the first picture's patches are all alike; "tied": every patch is there twice."""
    rng = np.random.default_rng(0)
    v, t = rng.standard_normal((len(LENGTHS), P, D)), rng.standard_normal((len(LENGTHS), PADDED, D))
    if batch == "flat":                                   # in eighths: products are exact, in whatever order they are added
        v[0], t[0] = np.round(8 * v[0, 0]) / 8, np.round(8 * t[0]) / 8
    if batch == "tied":
        v[:, 1::2] = v[:, ::2]
    return v, t


@cache
def fine(batch, **options):
    """Eq. 6: loss, gradients by name, share of weights that are 0."""
    v, t = embeddings(batch)
    loss, trace, back = fine_grained_loss(v, t, MASK, THETA, **options)
    return float(loss), dict(zip(("v", "t", "theta"), back())), float(np.mean(trace["weights"][MASK] == 0))


@cache
def whole(pixels, **options):
    """Eq. 7 of the preset tiny: loss, gradients by name, share of weights that are 0."""
    config, rng = replace(PRESETS["tiny"], **options), np.random.default_rng(0)
    params = {name: p + 0.1 * rng.standard_normal(p.shape) for name, p in init_params(PRESETS["tiny"], rng, "float64").items()}
    params |= {"theta": THETA, "theta_fine": THETA}
    known = init_params(config, rng)
    images = rng.standard_normal((len(LENGTHS), 3, pixels, pixels))
    tokens = rng.integers(0, config.vocab_size, MASK.shape)
    loss, trace, back = forward({name: params[name] for name in known}, images, tokens, MASK, config)
    return float(loss), back(), float(np.mean(trace["weights"][MASK] == 0))


ROWS = [                                                  # option, value, what is computed, on what
    ("reduction", "token", fine, ""), ("threshold_on", "weights", fine, ""), ("sigma", 0.3, fine, ""),
    ("align", "no_threshold", fine, ""), ("align", "softmax", fine, ""), ("similarity", "cosine", fine, ""),
    ("flat", "zero", fine, "flat"), ("ties", "first", fine, "tied"),
    ("h_v", "none", whole, 64), ("text_pool", "all", whole, 64), ("text_positions", "none", whole, 64),
    ("temperature", "separate", whole, 64), ("gelu", "erf", whole, 64), ("position_resize", "linear", whole, 96),
]


def change(option, value, compute, on) -> tuple[float, float, float]:
    """|L - L0| / |L0|, |g - g0| / |g0| over the gradients that both have, and the share of weights that are 0."""
    loss0, g0, _ = compute(on)
    loss, g, zeros = compute(on, **{option: value})
    both = g.keys() & g0.keys()
    off, size = (sum(float(np.sum(x * x)) for x in each) for each in ([g[n] - g0[n] for n in both], [g0[n] for n in both]))
    return abs(loss / loss0 - 1), (off / size) ** 0.5, zeros


def percent(x: float) -> str:
    return "0" if x < 1e-12 else f"{100 * x:.2g} %" if x < 1 else f"{100 * x:.0f} %"


def table() -> str:
    where = {"": "Gaussian", "flat": "one flat picture", "tied": "every patch twice", 64: "tiny, 64 px", 96: "tiny, 96 px"}
    lines = ["| option | batch | loss moves by | gradient moves by | weights that are 0 |", "| --- | --- | --- | --- | --- |"]
    lines.append(f"| all defaults | Gaussian | | | {percent(fine('')[2])} |")
    for option, value, compute, on in ROWS:
        loss, gradient, zeros = change(option, value, compute, on)
        lines.append(f"| `{option}` `{value}` | {where[on]} | {percent(loss)} | {percent(gradient)} | {percent(zeros)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
