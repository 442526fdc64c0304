"""The towers as open_clip holds them: a timm ViT without a class token, and open_clip's text tower, looking both ways.

    python -m parity.trainer.open_clip --run RUN --out FOLDER
    timm.models.VisionTransformer(**json of FOLDER/vision.json)            # takes vision.safetensors; forward_features: f_v
    open_clip.transformer.TextTransformer(**json of FOLDER/text.json)      # takes text.safetensors; ..., tokens: f_t

What differs, and what a kind of layer must be given beside the JSON, is said in FOLDER/README.md and printed.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from parity.trainer.export import PARTS
from sparc_ref.model import SPARCConfig
from sparc_ref.run.files import put
from sparc_ref.run.rundir import load_run

DIFFERENCE = """\
vision.*  timm.models.VisionTransformer: forward_features is SPARC's f_v. An open_clip model's visual.trunk has the same names.
text.*    open_clip.transformer.TextTransformer: the tokens it returns are SPARC's f_t. Ids of padding must be pad_id, 0, and no
          real token may be. Its pooled output is NOT t_bar: open_clip pools one token, SPARC takes the mean over real tokens.
Both      norm_layer=partial(LayerNorm, eps={eps:g}) and act_layer=partial(GELU, approximate="{gelu}") must be given too.
sparc.safetensors  what open_clip has no place for: h_v, g_v, g_t, theta (its logit_scale). With them
          v = g_v(f_v), t = g_t(f_t), v_bar = g_v(gelu(h_v(mean f_v))), t_bar = g_t(mean of f_t over real tokens).
open_clip's own vision tower has a class token that patches attend to, and SPARC none: it cannot hold this one.
Keys have no bias in SPARC; theirs is 0. Pictures are resized to a square, bicubic, and normalised with mean and deviation 0.5.
"""  # fmt: skip
TIMM = {"norm1": "norm1", "norm2": "norm2", "attn.out": "attn.proj", "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"}
OPEN_CLIP = {"norm1": "ln_1", "norm2": "ln_2", "attn.out": "attn.out_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}


def blocks(params: dict[str, np.ndarray], tower: str, depth: int, theirs: str, names: dict[str, str], packed: str) -> dict:
    """The blocks of one tower under the names of another's, queries, keys and values packed."""
    out: dict[str, np.ndarray] = {}
    for i in range(depth):
        ours = f"{tower}.blocks.{i}"
        for kind in ("weight", "bias"):
            out |= {f"{theirs}.{i}.{there}.{kind}": params[f"{ours}.{here}.{kind}"] for here, there in names.items()}
            zeros = np.zeros_like(params[f"{ours}.attn.query.bias"])
            out[f"{theirs}.{i}.{packed}{kind}"] = np.concatenate(
                [params.get(f"{ours}.attn.{part}.{kind}", zeros) for part in PARTS])
    return out


def vision(params: dict[str, np.ndarray], c: SPARCConfig) -> tuple[dict, dict[str, np.ndarray]]:
    """Arguments and weights of timm's VisionTransformer."""
    weights = blocks(params, "vision", c.vision_depth, "blocks", TIMM, "attn.qkv.") | {
        "patch_embed.proj.weight": params["vision.patch.weight"].reshape(c.vision_width, 3, c.patch_size, c.patch_size),
        "patch_embed.proj.bias": params["vision.patch.bias"], "pos_embed": params["vision.positions"][None],
        "norm.weight": params["vision.norm.weight"], "norm.bias": params["vision.norm.bias"],
    }  # fmt: skip
    return {"img_size": c.image_size, "patch_size": c.patch_size, "embed_dim": c.vision_width, "depth": c.vision_depth,
            "num_heads": c.vision_heads, "mlp_ratio": c.mlp_ratio, "class_token": False, "global_pool": "",
            "num_classes": 0}, weights


def text(params: dict[str, np.ndarray], c: SPARCConfig) -> tuple[dict, dict[str, np.ndarray]]:
    """Arguments and weights of open_clip's TextTransformer."""
    positions = params.get("text.positions", np.zeros((c.max_tokens, c.text_width), np.float32))
    weights = blocks(params, "text", c.text_depth, "transformer.resblocks", OPEN_CLIP, "attn.in_proj_") | {
        "token_embedding.weight": params["text.embedding.weight"], "positional_embedding": positions,
        "ln_final.weight": params["text.norm.weight"], "ln_final.bias": params["text.norm.bias"],
    }  # fmt: skip
    return {"context_length": c.max_tokens, "vocab_size": c.vocab_size, "width": c.text_width, "heads": c.text_heads,
            "layers": c.text_depth, "mlp_ratio": c.mlp_ratio, "no_causal_mask": True, "use_pad_mask": True, "pad_id": 0,
            "proj_type": "none", "pool_type": "none"}, weights


def write(run: Path, out: Path) -> str:
    """Everything, into a folder that is not there yet.      -> what differs"""
    params, config, tokenizer, _ = load_run(run)
    params = {name: np.asarray(p, np.float32) for name, p in params.items()}
    out.mkdir(parents=True)
    for name, (about, weights) in {"vision": vision(params, config), "text": text(params, config)}.items():
        put(out / f"{name}.json", json.dumps(about, indent=1).encode())
        save_file({key: np.ascontiguousarray(x) for key, x in weights.items()}, out / f"{name}.safetensors", {"format": "pt"})
    heads = ("h_v.", "g_v.", "g_t.", "theta")
    save_file({name: np.array(p, order="C") for name, p in params.items() if name.startswith(heads)}, out / "sparc.safetensors")
    tokenizer.save(out / "tokenizer")
    said = DIFFERENCE.format(eps=config.layer_norm_eps, gelu="tanh" if config.gelu == "tanh" else "none")
    put(out / "README.md", said.encode())
    return said


@dataclass(frozen=True)
class OpenCLIP:
    """Write the towers of a run's export as timm's and open_clip's."""

    run: Path                       # a run directory, or a checkpoint that sparc-ref opens
    out: Path                       # a folder that is not there yet


def main(argv: list[str] | None = None) -> int:
    import tyro

    given = tyro.cli(OpenCLIP, args=argv, prog="python -m parity.trainer.open_clip")
    try:
        said = write(given.run, given.out)
    except (ValueError, OSError) as error:
        print(f"open_clip: {error}", file=sys.stderr)
        return 2
    print(f"written: {given.out}\n{said}", end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
