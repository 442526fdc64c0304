"""Between the trainer and files: what sparc-ref opens, one safetensors file, and weights from elsewhere.

    python -m parity.trainer.export --run RUN                            # the newest checkpoint, for sparc-ref
    python -m parity.trainer.export --run RUN --out model.safetensors    # its parameters alone, under the reference's names
"""

import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from parity.trainer import checkpoint as sharded
from parity.trainer.model import SPARC, bare, to_numpy
from sparc_ref.data import load_tokenizer
from sparc_ref.model import SPARCConfig
from sparc_ref.run import checkpoint
from sparc_ref.run.inventory import CHECKPOINTS, CONFIG, TOKENIZER
from sparc_ref.run.rundir import objective_of


def whole(x: Tensor) -> np.ndarray:
    """A parameter's own copy on the host; of shards, all of it: every rank must call this."""
    return to_numpy(x.full_tensor() if isinstance(x, DTensor) else x)


def export(run: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, record: dict, tokenizer: Any, first: bool,
           keep: int) -> Path | None:
    """Write RUN/checkpoints/step_<n> as `sparc-ref train` does, moments too.  All ranks call it, `first` alone writes."""
    state = sharded.state_of(model, optimizer)
    arrays = {}
    for name, x in state.items():                         # one after the other: shards are gathered, and rank 0 keeps them
        array = whole(x)
        if first:
            arrays[name] = array
    folder = run / CHECKPOINTS
    if not first or (folder / f"step_{step:08d}").exists():
        return None
    names = list(bare(model).state_dict())
    params, m, v = ({name: arrays[f"{kind}.{name}"] for name in names} for kind in ("params", *sharded.MOMENTS))
    optimizer_state = {"step": sharded.applied(optimizer), "m": m, "v": v}
    path = checkpoint.save(folder, step, params, optimizer_state, {"config": record}, tokenizer)
    checkpoint.prune(folder, keep)
    return path


# ------------------------------------------------------------------------------------------------------------- from elsewhere


@dataclass(frozen=True)
class Taken:
    """What became of each tensor of a file, and of each parameter that none was taken for."""

    taken: dict[str, str] = field(default_factory=dict)   # parameter -> tensor of the file
    dropped: dict[str, str] = field(default_factory=dict)  # tensor of the file -> why
    drawn: list[str] = field(default_factory=list)        # parameters that stay as they were drawn

    def __str__(self) -> str:
        out = [f"taken {len(self.taken)}, dropped {len(self.dropped)}, drawn anew {len(self.drawn)}"]
        out += [f"  taken   {name}" + (f" from {source}" if source != name else "") for name, source in self.taken.items()]
        out += [f"  dropped {name}: {why}" for name, why in self.dropped.items()]
        out += [f"  drawn   {name}" for name in self.drawn]
        return "\n".join(out)


LAYER = {                                                 # inside of a block: Hugging Face's, timm's, open_clip's -> ours
    "layernorm_before": "norm1", "layer_norm1": "norm1", "norm1": "norm1", "ln_1": "norm1",
    "layernorm_after": "norm2", "layer_norm2": "norm2", "norm2": "norm2", "ln_2": "norm2",
    "attention.attention.query": "attn.query", "self_attn.q_proj": "attn.query", "attention.q_proj": "attn.query",
    "attention.attention.key": "attn.key", "self_attn.k_proj": "attn.key", "attention.k_proj": "attn.key",
    "attention.attention.value": "attn.value", "self_attn.v_proj": "attn.value", "attention.v_proj": "attn.value",
    "attn.qkv": "attn.PACKED", "attn.in_proj": "attn.PACKED",
    "attention.output.dense": "attn.out", "self_attn.out_proj": "attn.out", "attention.o_proj": "attn.out",
    "attn.proj": "attn.out", "attn.out_proj": "attn.out",
    "intermediate.dense": "mlp.up", "mlp.fc1": "mlp.up", "mlp.c_fc": "mlp.up",
    "output.dense": "mlp.down", "mlp.fc2": "mlp.down", "mlp.c_proj": "mlp.down",
}  # fmt: skip
VISION = {
    "embeddings.patch_embeddings.projection": "vision.patch", "embeddings.patch_embedding": "vision.patch",
    "patch_embed.proj": "vision.patch", "conv1": "vision.patch",
    "embeddings.position_embeddings": "vision.positions", "embeddings.position_embedding.weight": "vision.positions",
    "pos_embed": "vision.positions", "positional_embedding": "vision.positions",
    "layernorm": "vision.norm", "post_layernorm": "vision.norm", "norm": "vision.norm", "ln_post": "vision.norm",
}  # fmt: skip
TEXT = {
    "embeddings.token_embedding": "text.embedding", "token_embedding": "text.embedding",
    "embeddings.position_embedding.weight": "text.positions", "positional_embedding": "text.positions",
    "final_layer_norm": "text.norm", "ln_final": "text.norm",
}  # fmt: skip
BLOCK = r"(?:encoder\.|transformer\.)?(?:layers?|blocks|resblocks)\.(\d+)\.(.+?)[._](weight|bias)"
PARTS = ("query", "key", "value")                         # in the order in which others pack them


def renamed(name: str, alone: str = "vision") -> str:
    """Our name for a tensor of a tower in the layout of Hugging Face, timm or open_clip; its own where it is none of theirs.

    alone: whose tower a tensor is that does not say so in its name.  What others pack, queries, keys and values, is PACKED.
    """
    short = re.sub(r"^(vit|vision_model|text_model|visual\.trunk|visual|text)\.", "", name)
    says = re.match(r"(text|vi)", name) if short != name else None
    tower = {"text": "text", "vi": "vision"}[says[1]] if says else alone
    if match := re.fullmatch(BLOCK, short):
        inside = LAYER.get(match[2])
        return f"{tower}.blocks.{match[1]}.{inside}.{match[3]}" if inside else name
    table = TEXT if tower == "text" else VISION
    for theirs, ours in table.items():
        if short == theirs:
            return ours
        if short.startswith(f"{theirs}.") and short.rpartition(".")[0] == theirs:
            return f"{ours}.{short.rpartition('.')[2]}"
    return name


def pieces(name: str, ours: str, x: Tensor) -> list[tuple[str, str, Tensor]]:
    """A tensor of a file, as its own name, ours, numbers: one, or three where queries, keys and values are packed."""
    if "PACKED" not in ours:
        return [(name, ours, x)]
    return [(f"{name}[{part}]", ours.replace("PACKED", part), y) for part, y in zip(PARTS, x.chunk(3))]


@torch.no_grad()
def take_weights(model: SPARC, file: str | Path, only: tuple[str, ...] = ()) -> Taken:
    """Copy what fits from a safetensors file into the model.      only: starts of parameter names, such as vision.; (): all

    Read are our own names (an export, parameters.safetensors of any checkpoint), ViT and CLIP towers in Hugging Face's layout,
    timm's ViTs, and open_clip's towers, alone or both; a convolution becomes the product it is, a class token and its position
    are dropped.  Every name is accounted for.
    """
    own = model.state_dict()
    found = Taken(drawn=[])
    try:
        handle = safe_open(file, framework="pt")
    except Exception as error:
        raise ValueError(f"{file}: not a readable safetensors file ({error})") from error
    with handle as tensors:
        names = list(tensors.keys())
        text = {"embeddings.token_embedding.weight", "token_embedding.weight"}
        alone = "text" if text & set(names) else "vision"
        for name in names:
            here = name if name in own else renamed(name, alone)
            for source, ours, x in pieces(name, here, tensors.get_tensor(name)):
                take(own, found, source, ours, x, only)
    found.drawn.extend(name for name in own if name not in found.taken)
    return found


def take(own: dict[str, Tensor], found: Taken, source: str, ours: str, x: Tensor, only: tuple[str, ...]) -> None:
    """One tensor, into `own` if it fits.      source: its name in the file"""
    if ours.endswith("attn.key.bias"):
        found.dropped[source] = "keys have no bias here: softmax cancels it"
        return
    if ours not in own:
        found.dropped[source] = "this model has none of that name"
        return
    if only and not ours.startswith(only):
        found.dropped[source] = "not asked for"
        return
    if ours == "vision.patch.weight" and x.ndim == 4:
        x = x.flatten(1)                                  # (C,3,p,p) -> (C,3pp), the order of our patches
    if ours.endswith(".positions") and x.ndim == 3:
        x = x[0]
    if ours == "vision.positions" and len(x) == len(own[ours]) + 1:
        x = x[1:]
        found.dropped[f"{source}[0]"] = "the class token's position"
    if x.shape != own[ours].shape:
        found.dropped[source] = f"is {tuple(x.shape)}, not {tuple(own[ours].shape)}"
        return
    own[ours].copy_(x)
    found.taken[ours] = source


# ------------------------------------------------------------------------------------------------------------ the command


@dataclass(frozen=True)
class Export:
    """Export the newest checkpoint of a run, or another one of it."""

    run: Path                       # the run directory
    out: Path | None = None         # a safetensors file for the parameters alone; none: RUN/checkpoints, as sparc-ref's
    step: int | None = None         # which checkpoint; none: the newest


def run_export(given: Export) -> Path:
    """The command.      ValueError where there is nothing to export"""
    from parity.trainer import optim
    from parity.trainer.launch import ranks

    found = sharded.steps(given.run / sharded.FOLDER)
    named = [p for p in found if given.step is None or p.name == f"step_{given.step:08d}"]
    if not named:
        there = ", ".join(p.name for p in found) or "(none is there)"
        raise ValueError(f"{given.run}: expected one of the checkpoints {there}")
    about = sharded.read_about(named[-1])
    record = json.loads((given.run / CONFIG).read_text("utf-8"))
    config = checkpoint.from_json(SPARCConfig, record["model"], given.run / CONFIG)
    with ranks("cpu"):
        model = SPARC(config, objective=objective_of(record, given.run / CONFIG))
        optimizer = optim.make_adamw(model, 1e-3, fused=False)
        sharded.load(named[-1], about, model, optimizer)
        if given.out is not None:
            save_file({name: whole(p) for name, p in model.state_dict().items()}, given.out)
            return given.out
        path = given.run / CHECKPOINTS / named[-1].name
        export(given.run, about["step"], model, optimizer, record, load_tokenizer(given.run / TOKENIZER), True, 2)
        return path


def main(argv: list[str] | None = None) -> int:
    import tyro

    try:
        print(f"written: {run_export(tyro.cli(Export, args=argv, prog='python -m parity.trainer.export'))}")
    except (ValueError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
