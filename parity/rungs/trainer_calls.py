"""How the trainer is asked for what a vector holds: function -> call(trainer, inputs, options) -> out, mid[, gradients].

Inputs are torch tensors.  Names are those of parity/cases.  What the trainer has no part of its own for is not here; where
gradients are not returned, autograd takes them.
"""

from collections.abc import Callable
from typing import Any

import torch


def gelu(trainer: Any, x: dict, o: dict) -> tuple[dict, dict]:
    return {"y": trainer.model.gelu(x["x"], o["kind"])}, {}


def mlp(trainer: Any, x: dict, o: dict) -> tuple[dict, dict]:
    module = trainer.model.MLP(x["x"].shape[-1], x["up"].shape[0], o["kind"])
    weights = {"up.weight": x["up"], "up.bias": x["up_bias"], "down.weight": x["down"], "down.bias": x["down_bias"]}
    return {"y": torch.func.functional_call(module, weights, (x["x"],))}, {}


def attention(kind: str) -> Callable:
    """Between the projections: queries, keys and values as given, the output as it is."""

    def call(trainer: Any, x: dict, o: dict) -> tuple[dict, dict]:
        width = x["qkv"].shape[-1] // 3
        how = {"gelu": "tanh", "eps": 1e-6, "attention": kind, "fused_qkv": True, "checkpoint": False}
        module = trainer.model.Attention(width, o["heads"], how)
        module.qkv, module.out = lambda y: x["qkv"].chunk(3, -1), torch.nn.Identity()
        return {"y": module(x["qkv"][..., :width], x.get("mask"))}, {}

    return call


def fine_grained_loss(trainer: Any, x: dict, o: dict) -> tuple[dict, dict]:
    loss, stages = trainer.loss.fine_grained_loss(x["v"], x["t"], x["mask"], x["theta"], **o)
    return {"loss": loss}, stages


def global_loss(form: str) -> Callable:
    def call(trainer: Any, x: dict, o: dict) -> tuple[dict, dict]:
        loss, stages = trainer.loss.global_loss(x["v_bar"], x["t_bar"], x["theta"], form=form, chunk=3)
        return {"loss": loss}, stages

    return call


CALLS: dict[str, dict[str, Callable]] = {  # function -> whose numbers -> call
    "gelu": {"trainer": gelu},
    "mlp": {"trainer": mlp},
    "attention": {"trainer, sdpa": attention("sdpa"), "trainer, plain": attention("plain")},
    "fine_grained_loss": {"trainer": fine_grained_loss},
    "global_loss": {f"trainer, {form}": global_loss(form) for form in ("plain", "gathered", "chunked")},
}
