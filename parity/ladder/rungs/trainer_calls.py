"""How the trainer is asked for what a vector holds: function -> call(trainer, inputs, options) -> out, mid[, gradients].

Inputs are torch tensors.  Names are those of parity/cases.  What the trainer has no part of its own for is not here; where
gradients are not returned, autograd takes them.
"""

from collections.abc import Callable
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import torch

from parity import oracle_objectives
from parity.vectors.cases.objectives import EMBEDDINGS
from parity.vectors.cases.objectives import OPTIONS as OBJECTIVES
from sparc_ref.model import SPARCConfig

LEAST = {"vision_width": 2, "vision_depth": 1, "vision_heads": 1, "text_width": 2, "text_depth": 1, "text_heads": 1,
         "vocab_size": 3, "max_tokens": 2, "embed_dim": 2, "image_size": 2, "patch_size": 2, "mlp_ratio": 1}


def net(trainer: Any, attention: str = "sdpa", **options: Any) -> Any:
    """A model of which only a part is wanted: the rest as small as can be."""
    return trainer.model.SPARC(SPARCConfig(**LEAST | options), attention=attention, fused_qkv=attention == "sdpa")


def gelu(trainer: Any, x: dict, o: dict) -> tuple[dict, dict]:
    return {"y": trainer.model.gelu(x["x"], o["kind"])}, {}


def mlp(trainer: Any, x: dict, o: dict) -> tuple[dict, dict]:
    module = net(trainer, gelu=o["kind"]).vision.blocks[0].mlp
    weights = {"up.weight": x["up"], "up.bias": x["up_bias"], "down.weight": x["down"], "down.bias": x["down_bias"]}
    return {"y": torch.func.functional_call(module, weights, (x["x"],))}, {}


def attention(kind: str) -> Callable:
    """Between the projections: queries, keys and values as given, the output as it is."""

    def call(trainer: Any, x: dict, o: dict) -> tuple[dict, dict]:
        width = x["qkv"].shape[-1] // 3
        module = net(trainer, kind, text_width=width, text_heads=o["heads"]).text.blocks[0].attn
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


BATCH = ("images", "tokens", "mask")


def tower_sizes(x: dict, tower: str) -> dict:
    """A tower's sizes, from its parameters' shapes."""
    width = x[f"{tower}.norm.bias"].shape[0]
    depth = len({name.split(".")[2] for name in x if name.startswith(f"{tower}.blocks.")})
    ratio = x[f"{tower}.blocks.0.mlp.up.bias"].shape[0] // width if depth else 1
    return {f"{tower}_width": width, f"{tower}_depth": depth, "mlp_ratio": ratio}


def part(x: dict, tower: str) -> dict:
    return {name.removeprefix(f"{tower}."): p for name, p in x.items() if name.startswith(f"{tower}.")}


def vision_tower(kind: str) -> Callable:
    def call(trainer: Any, x: dict, o: dict) -> tuple[dict, dict]:
        module = net(trainer, kind, **o, **tower_sizes(x, "vision")).vision
        return {"y": torch.func.functional_call(module, part(x, "vision"), (x["images"],))}, {}

    return call


def text_tower(kind: str) -> Callable:
    def call(trainer: Any, x: dict, o: dict) -> tuple[dict, dict]:
        more = {"vocab_size": x["text.embedding.weight"].shape[0], "max_tokens": x["tokens"].shape[1], "text_positions": "none"}
        if "text.positions" in x:
            more |= {"max_tokens": x["text.positions"].shape[0], "text_positions": "learned"}
        module = net(trainer, kind, **o, **more, **tower_sizes(x, "text")).text
        return {"y": torch.func.functional_call(module, part(x, "text"), (x["tokens"], x["mask"]))}, {}

    return call


def image_head(trainer: Any, x: dict, o: dict) -> tuple[dict, dict]:
    def layer(name):
        return lambda y: torch.nn.functional.linear(y, x[f"{name}.weight"], x[f"{name}.bias"])

    own = SimpleNamespace(h_v=layer("h_v") if o["h_v"] == "dense_gelu" else None, g_v=layer("g_v"), config=SimpleNamespace(**o))
    return {"y": trainer.model.SPARC.image_head(own, x["x"])}, {}


def model(trainer: Any, x: dict, o: dict) -> tuple[dict, dict]:
    config = SPARCConfig(**o)
    params = {name: p for name, p in x.items() if name not in BATCH}
    out = torch.func.functional_call(trainer.model.SPARC(config), params, tuple(x[name] for name in BATCH))
    loss, stages = trainer.loss.sparc_loss(out, x["mask"], x["theta"], x.get("theta_fine"), config)
    return {"loss": loss}, out | stages


def train(trainer: Any, x: dict, o: dict) -> tuple[dict, dict, dict]:
    """Ten updates of the toy model."""
    config = SPARCConfig(**{f.name: o[f.name] for f in fields(SPARCConfig)})
    params = {name: p for name, p in x.items() if name not in BATCH}
    trained = trainer.model.load_params(trainer.model.SPARC(config).to(x["theta"]), params)
    optimizer = adamw_of(trainer, trained, o)
    found: dict = {"losses": [], "norms": [], "rates": []}
    for step in range(o["steps"]):
        rate = rate_of(trainer, step, o)
        batch = tuple(x[name][step] for name in BATCH)
        said = trainer.optim.train_step(trained, batch, optimizer, rate, clip=o["limit"])
        for name, value in zip(found, (said["loss"], said["norm"], rate)):
            found[name].append(float(value))
    series = {name: x["theta"].new_tensor(values) for name, values in found.items()}
    return series | state_of(trained, optimizer, params), {}, {}


def adamw(trainer: Any, x: dict, o: dict) -> tuple[dict, dict, dict]:
    """Ten updates on given gradients: clip, AdamW, clamp."""
    params = {name: p for name, p in x.items() if not name.startswith("grads.")}
    held = holder(trainer, params)
    optimizer = adamw_of(trainer, held, o)
    found: dict = {"norms": [], "rates": []}
    for step in range(o["steps"]):
        for name, p in held.named_parameters():
            p.grad = x[f"grads.{name}"][step].clone()
        found["norms"].append(float(trainer.optim.clip(held, o["limit"])))
        found["rates"].append(rate_of(trainer, step, o))
        for group in optimizer.param_groups:
            group["lr"] = found["rates"][-1]
        optimizer.step()
        trainer.optim.clamp_theta(held)
    series = {name: x["theta"].new_tensor(values) for name, values in found.items()}
    return series | state_of(held, optimizer, params), {}, {}


def adamw_of(trainer: Any, model: Any, o: dict) -> Any:
    betas = (o["beta1"], o["beta2"])
    return trainer.optim.make_adamw(model, o["peak"], weight_decay=o["weight_decay"], betas=betas, eps=o["eps"])


def rate_of(trainer: Any, step: int, o: dict) -> float:
    return trainer.optim.warmup_cosine(step, **{name: o[name] for name in ("peak", "warmup", "steps", "final")})


def holder(trainer: Any, params: dict) -> Any:
    """A SPARC that holds these parameters under their names, and nothing else."""
    held = trainer.model.SPARC.__new__(trainer.model.SPARC)
    torch.nn.Module.__init__(held)
    held.theta = held.theta_fine = None
    for name, p in params.items():
        inner, path = held, name.split(".")
        for step in path[:-1]:
            if not hasattr(inner, step):
                inner.add_module(step, torch.nn.Module())
            inner = getattr(inner, step)
        if hasattr(inner, path[-1]):
            delattr(inner, path[-1])
        inner.register_parameter(path[-1], torch.nn.Parameter(p.detach().clone()))
    return held


def state_of(model: Any, optimizer: Any, names: dict) -> dict:
    """Parameters and both moments by name."""
    now = dict(model.named_parameters())
    moments = {"params": lambda p: p.detach(), "m": lambda p: optimizer.state[p]["exp_avg"],
               "v": lambda p: optimizer.state[p]["exp_avg_sq"]}
    return {f"{kind}.{name}": take(now[name]) for kind, take in moments.items() for name in names}


def by_oracle(name: str) -> Callable:
    """In whatever dtype is asked for."""

    def call(trainer: Any, x: dict, o: dict) -> tuple[dict, dict]:
        params = {n: p for n, p in x.items() if n not in EMBEDDINGS}
        loss, parts = getattr(oracle_objectives, name)(params, *(x[n] for n in EMBEDDINGS), **o)
        return {"loss": loss}, parts

    return call


def objective(name: str, **how: Any) -> Callable:
    """The trainer's.      how: whole, or in blocks"""

    def call(trainer: Any, x: dict, o: dict) -> tuple[dict, dict]:
        params, mask = {n: p for n, p in x.items() if n not in EMBEDDINGS}, x["mask"]
        if name == "sparc":
            how_sparc = {n: v for n, v in how.items() if n != "pair_chunk"}
            loss, stages = trainer.loss.sparc_loss(x, mask, params["theta"], None, SimpleNamespace(**o), **how_sparc)
        else:
            loss, stages = trainer.objectives.compared(name, x, mask, params, trainer.objectives.How(**how), **o)
        return {"loss": loss}, stages

    return call


IN_BLOCKS = {"form": "chunked", "chunk": 3, "fine_chunk": 3, "pair_chunk": 3}
CALLS: dict[str, dict[str, Callable]] = {  # function -> whose numbers -> call
    "gelu": {"trainer": gelu},
    "mlp": {"trainer": mlp},
    "attention": {"trainer, sdpa": attention("sdpa"), "trainer, plain": attention("plain")},
    "fine_grained_loss": {"trainer": fine_grained_loss},
    "global_loss": {f"trainer, {form}": global_loss(form) for form in ("plain", "gathered", "chunked")},
    "vision_tower": {"trainer, sdpa": vision_tower("sdpa"), "trainer, plain": vision_tower("plain")},
    "text_tower": {"trainer, sdpa": text_tower("sdpa"), "trainer, plain": text_tower("plain")},
    "image_head": {"trainer": image_head},
    "model": {"trainer": model},
    "train": {"trainer": train},
    "adamw": {"trainer": adamw},
    **{name: {"oracle": by_oracle(name), "trainer": objective(name), "trainer, in blocks": objective(name, **IN_BLOCKS)}
       for name in OBJECTIVES},
}
