"""AdamW with decoupled decay, its schedule, and clipping.  Everything is a function from arrays to new arrays."""

import math

import numpy as np
from array_api_compat import array_namespace

from sparc_ref import backend
from sparc_ref.backend import Array

THETA_RANGE = (0.0, math.log(100))  # 1/tau in [1, 100], as CLIP


def decays(name: str) -> bool:
    """Whether weight decay applies: to matrices only; biases, norms, positions, embeddings and theta are left alone."""
    return name.endswith(".weight") and "norm" not in name and "embedding" not in name


def adamw_init(params: dict[str, Array]) -> dict:
    """The optimiser's state before the first step: {"step": 0, "m": zeros, "v": zeros}."""
    zeros = {name: array_namespace(p).zeros_like(p) for name, p in params.items()}
    return {"step": 0, "m": zeros, "v": dict(zeros)}


def adamw_step(
    params: dict[str, Array],
    grads: dict[str, Array],
    state: dict,
    lr: float,
    *,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float = 1e-6,
    weight_decay: float = 0.2,
) -> tuple[dict[str, Array], dict]:
    """One update (Loshchilov & Hutter, arXiv 1711.05101, Algorithm 2), as torch.optim.AdamW computes it.

    params, grads: the same names and shapes.  Returns new params and a new state.  Raises ValueError when names differ, and
    ArithmeticError where a gradient's square leaves the range of its dtype (float32: 1.8e19), for then nothing would move.
    Squares below that range (float32: of 1e-19 and less) are 0, which an eps of 1e-15 or more never sees.
    The defaults of betas and eps are open_clip's; the paper (D.4) sweeps lr 7e-4 .. 1.1e-3 and decay 0.1 .. 0.3.
    """
    if params.keys() != grads.keys():
        raise ValueError(f"grads: expected the names of params; differs in {sorted(params.keys() ^ grads.keys())[:5]}")
    step = state["step"] + 1
    beta1, beta2 = betas
    root = math.sqrt(1 - beta2**step)
    rate = lr * root / (1 - beta1**step)

    def update(name):
        xp = array_namespace(params[name])
        p, g = params[name], grads[name]
        m = beta1 * state["m"][name]
        m += (1 - beta1) * g
        v = g * g
        v *= 1 - beta2
        v += beta2 * state["v"][name]
        if not math.isfinite(float(xp.sum(v))) and not bool(xp.all(xp.isfinite(v))):
            raise ArithmeticError(f"gradient of {name}: its square left the range of {backend.dtype_name(v)}; clip it first")
        change = xp.sqrt(v)
        change += eps * root                              # both bias corrections are in root and rate
        change = m / change
        change *= rate
        p = p * (1 - lr * weight_decay) if decays(name) else p
        return xp.asarray(p - change), xp.asarray(m), xp.asarray(v)  # NumPy makes scalars of 0-d results

    done = dict(zip(params, backend.run_threads([lambda name=name: update(name) for name in params])))
    state = {"step": step, "m": {n: d[1] for n, d in done.items()}, "v": {n: d[2] for n, d in done.items()}}
    return {name: d[0] for name, d in done.items()}, state


def clip_by_global_norm(grads: dict[str, Array], limit: float) -> tuple[dict[str, Array], float]:
    """Scale all gradients by one factor so that their joint L2 norm is at most `limit`.  Returns them and the norm before.

    Where squares leave the dtype's range, the norm is taken of gradients divided by their largest number.
    """
    def squares(g, by=None):
        flat = array_namespace(g).reshape(g if by is None else g / by, (-1,))
        return float(array_namespace(g).vecdot(flat, flat))

    norm = math.sqrt(sum(backend.run_threads([lambda g=g: squares(g) for g in grads.values()])))
    if not 1e-15 < norm < math.inf and grads:             # squares of float32 end at 1e-38
        top = max(float(array_namespace(g).max(array_namespace(g).abs(g))) for g in grads.values() if 0 not in g.shape)
        if 0 < top < math.inf:
            norm = top * math.sqrt(sum(squares(g, top) for g in grads.values()))
    if not norm > limit:
        return grads, norm
    scaled = backend.run_threads([lambda g=g: g * (limit / norm) for g in grads.values()])
    return dict(zip(grads, scaled)), norm


def warmup_cosine(step: int, *, peak: float, warmup: int, steps: int, final: float = 0.0) -> float:
    """The learning rate of update `step` = 0, 1, ...: linear up to `peak` in `warmup` updates, then a cosine to `final`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * done))


def clamp_theta(params: dict[str, Array]) -> dict[str, Array]:
    """Keep log(1/tau), of every temperature, within [0, log 100].  Part of training, not of the loss."""
    lowest, highest = THETA_RANGE
    return params | {
        name: array_namespace(p).clip(p, lowest, highest) for name, p in params.items() if name.startswith("theta")
    }


def count(params: dict[str, Array]) -> int:
    """How many numbers there are in all."""
    return sum(int(np.prod(p.shape)) for p in params.values())
