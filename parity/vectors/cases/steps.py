"""Level "steps": ten updates.  AdamW alone on given gradients, and the toy model's whole training step.

S updates; the other letters are those of the encoders' cases.  There is no gradient to be checked here: the third witness is
torch's own AdamW and clip_grad_norm_.
"""

import math
from types import SimpleNamespace

import numpy as np

from parity import oracle
from parity.vectors.cases.core import Definition, Draw, Function, lengths
from parity.vectors.cases.encoders import PARAMETERS, draw_params
from parity.vectors.cases.model import BATCH, toy
from sparc_ref import backend, optim
from sparc_ref.model import SPARCConfig, forward

FLAGS = {
    "adamw": "decoupled decay, its exceptions, bias correction, where eps goes",
    "clip": "the joint norm of all gradients, limited before the update",
    "clamp": "theta leaves its range and is brought back after the update, its moments are not",
}
PLAN = {"peak": 0.0078125, "warmup": 3, "steps": 10, "final": 0.0, "limit": 1.0, "beta1": 0.9, "beta2": 0.98, "eps": 1e-6,
        "weight_decay": 0.2}
MOVING = {"vision.patch.weight": "CK", "vision.positions": "OC", "vision.norm.weight": "C", "text.embedding.weight": "VE",
          "g_v.bias": "D", "theta": "", "theta_fine": ""}


def axes(options):
    """Parameters, their gradients for every update, what comes out."""
    table = {"images": "SBRIJ", "tokens": "SBL", "mask": "SBL", "losses": "S", "norms": "S", "rates": "S", **PARAMETERS}
    for name, letters in PARAMETERS.items():
        table |= {f"grads.{name}": f"S{letters}"} | {f"{kind}.{name}": letters for kind in ("params", "m", "v")}
    return table


def _run(params, plan, gradients):
    """The reference's updates.      gradients(params, step) -> loss, dict"""
    state, losses, norms, rates = optim.adamw_init(params), [], [], []
    theta = params["theta"]
    for step in range(plan["steps"]):
        loss, grads = gradients(params, step)
        grads, norm = optim.clip_by_global_norm(grads, plan["limit"])
        rates.append(optim.warmup_cosine(step, **{n: plan[n] for n in ("peak", "warmup", "steps", "final")}))
        params, state = optim.adamw_step(params, grads, state, rates[-1], betas=(plan["beta1"], plan["beta2"]),
                                         eps=plan["eps"], weight_decay=plan["weight_decay"])
        params = optim.clamp_theta(params)
        losses.append(loss)
        norms.append(norm)
    series = {"losses": losses, "norms": norms, "rates": rates} if losses[0] is not None else {"norms": norms, "rates": rates}
    series = {n: backend.like(np.array([float(x) for x in values]), theta) for n, values in series.items()}
    return series | _flat(params, state["m"], state["v"]), {}, None


def _flat(p, m, v):
    return {f"{kind}.{n}": x for kind, values in (("params", p), ("m", m), ("v", v)) for n, x in values.items()}


def _parts(x):
    """Inputs -> parameters, gradients for every update."""
    grads = {n.removeprefix("grads."): g for n, g in x.items() if n.startswith("grads.")}
    return {n: x[n] for n in x if n not in BATCH and not n.startswith("grads.")}, grads


def _adamw(x, o):
    params, grads = _parts(x)
    return _run(params, o, lambda p, step: (None, {n: g[step, ...] for n, g in grads.items()}))


def _train(x, o):
    params, _ = _parts(x)
    config = SPARCConfig(**{n: value for n, value in o.items() if n not in PLAN})

    def gradients(p, step):
        loss, _, back = forward(p, *(x[n][step, ...] for n in BATCH), config)
        return loss, back()

    return _run(params, o, gradients)


def _given(grads):
    return lambda p, step: (0.0, {n: g[step] for n, g in grads.items()})


def _autograd(x, o):
    """The oracle's loss and gradients of the toy model."""
    c = SimpleNamespace(**o)

    def gradients(p, step):
        leaves = {n: y.detach().clone().requires_grad_() for n, y in p.items()}
        loss = oracle.model(leaves, *(x[n][step] for n in BATCH), c)
        loss.backward()
        return loss.detach(), {n: y.grad for n, y in leaves.items()}

    return gradients


def _oracle(make):
    def theirs(x, o):
        params, grads = _parts(x)
        plan = {n: o[n] for n in ("peak", "warmup", "steps", "limit", "eps", "weight_decay", "final")}
        losses, norms, rates, p, m, v = oracle.train(
            params, make(x, o) if make else _given(grads), betas=(o["beta1"], o["beta2"]), **plan)
        series = {"losses": losses, "norms": norms, "rates": rates} if make else {"norms": norms, "rates": rates}
        return series | _flat(p, m, v), {}

    return theirs


def _torch(make):
    """torch.optim.AdamW and clip_grad_norm_."""

    def theirs(x, o):
        import torch

        params, grads = _parts(x)
        gradients = make(x, o) if make else _given(grads)
        leaves = {n: y.detach().clone().requires_grad_() for n, y in params.items()}
        spared = [n for n in leaves if not _decays(n)]
        groups = [{"params": [y for n, y in leaves.items() if n not in spared], "weight_decay": o["weight_decay"]},
                  {"params": [leaves[n] for n in spared], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(o["beta1"], o["beta2"]), eps=o["eps"])
        losses, norms, rates = [], [], []
        for step in range(o["steps"]):
            loss, each = gradients({n: y.detach() for n, y in leaves.items()}, step)
            for n, y in leaves.items():
                y.grad = each[n].clone()
            norms.append(math.sqrt(sum(float((y.grad**2).sum()) for y in leaves.values())))
            if norms[-1] > o["limit"]:                        # clip_grad_norm_ divides by norm + 1e-6
                torch.nn.utils.clip_grad_norm_(leaves.values(), o["limit"] * (1 + 1e-6 / norms[-1]))
            late = (step - o["warmup"]) / max(1, o["steps"] - o["warmup"])
            rates.append(o["peak"] * (step + 1) / o["warmup"] if step < o["warmup"] else
                         o["final"] + (o["peak"] - o["final"]) * math.cos(math.pi * late / 2) ** 2)
            for group in optimizer.param_groups:
                group["lr"] = rates[-1]
            optimizer.step()
            with torch.no_grad():
                for n in leaves.keys() & {"theta", "theta_fine"}:
                    leaves[n].clamp_(0, math.log(100))
            losses.append(float(loss))
        series = {"losses": losses, "norms": norms, "rates": rates} if make else {"norms": norms, "rates": rates}
        series = {n: torch.tensor(values, dtype=torch.float64) for n, values in series.items()}
        m, v = ({n: optimizer.state[y][key] for n, y in leaves.items()} for key in ("exp_avg", "exp_avg_sq"))
        return series | _flat({n: y.detach() for n, y in leaves.items()}, m, v), {}

    return theirs


def _decays(name):
    """sparc.md leaves decay open; optim.decays decides: matrices alone."""
    return name.split(".")[-1] == "weight" and not any(word in name for word in ("norm", "embedding"))


FUNCTIONS = {
    "adamw": Function("steps", _adamw, _oracle(None), axes, "CKOVED", low=("float32",), witness=_torch(None)),
    "train": Function("steps", _train, _oracle(_autograd), axes, "BDHG", low=("float32",), witness=_torch(_autograd)),
}


def cases():
    """Every case of this level."""
    return [*_adamw_cases(), *_train_cases()]


def _adamw_cases():
    d = Draw(401)
    sizes = {"S": 10, "C": 4, "K": 5, "O": 3, "V": 6, "E": 2, "D": 7}
    shapes = {n: tuple(sizes[letter] for letter in letters) for n, letters in MOVING.items()}
    params = draw_params(d, shapes)
    grads = {f"grads.{n}": d.normal(10, *s) * np.float32(0.25) for n, s in shapes.items()}
    free = PLAN | {"limit": 1e9, "weight_decay": 0.25}

    def case(name, flags, note, params=params, grads=grads, **plan):
        return Definition(f"adamw_{name}", "adamw", {**params, **grads}, free | plan, flags, note)

    yield case("ten_steps", ("adamw",), "Warm-up, cosine, decay of matrices alone. Caught: decay on biases, norms, positions, "
               "embeddings or theta; decay inside the gradient (L2); no bias correction; a schedule that starts at 0.")
    yield case("first_step", ("adamw",), "One update. Caught: a missing bias correction, which shows most here.",
               grads={n: g[:1] for n, g in grads.items()}, steps=1, warmup=1)
    yield case("eps", ("adamw",), "Gradients as small as eps. Caught: eps inside the root, or before the bias correction.",
               grads={n: g * np.float32(2**-20) for n, g in grads.items()})
    yield case("clip", ("clip",), "Gradients longer than the limit in some updates. Caught: clipping tensor by tensor, by "
               "value, or after the update; norms reported after clipping.", limit=1.75)
    away = {f"grads.{n}": np.full(10, g, np.float32) for n, g in (("theta", -1.0), ("theta_fine", 1.0))}
    ends = {"theta": np.asarray(4.5, np.float32), "theta_fine": np.asarray(0.25, np.float32)}
    yield case("clamp", ("clamp",), "theta is driven beyond log 100, theta_fine below 0. Caught: no clamp, or one end of it.",
               params=params | ends, grads=grads | away, peak=0.125)
    yield case("final", ("adamw",), "A cosine that ends above 0, other betas, no decay. Caught: built-in constants.",
               final=0.0078125, beta1=0.75, beta2=0.9375, weight_decay=0.0)


def toy_training(seed, **changes):
    """Ten batches for a toy model (width 14, so that no size is 10)."""
    x, options = toy(seed, vision_width=14, **changes)
    draw = Draw(seed + 1)
    real = np.array([[5, 2, 4, 3], [3, 5, 1, 4]])
    params = {n: p for n, p in x.items() if n not in BATCH}
    batches = {"images": draw.normal(10, 4, 3, 12, 12), "tokens": draw.ids(13, 10, 4, 5)}
    return {**batches, "mask": np.stack([lengths(5, *real[i % 2]) for i in range(10)]), **params}, options


def _train_cases():
    x, options = toy_training(402)
    yield Definition("train_default", "train", x, options | PLAN, ("adamw", "clip"), "Ten updates of the toy model, another "
                     "batch each: loss, clip, AdamW, clamp. Caught: gradients not reset, losses reported after the update.")
    x, options = toy_training(403, temperature="separate", reduction="token", gelu="erf", align="softmax")
    plan = PLAN | {"limit": 100.0, "weight_decay": 0.0, "final": 0.001953125}
    yield Definition("train_options", "train", x, options | plan, ("adamw", "separate"),
                     "The same under other options, no gradient clipped. Caught: clipping at all.")
