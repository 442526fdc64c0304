"""The towers in Hugging Face's layout: SigLIP's are what ours are, pre-norm, without a class token, tanh GELU.

    python -m parity.trainer.hugging_face --run RUN --out FOLDER
    SiglipVisionModel.from_pretrained("FOLDER/vision")             # last_hidden_state is f_v
    SiglipTextModel.from_pretrained("FOLDER/text")                 # last_hidden_state is f_t, given the attention_mask

What differs is said in FOLDER/README.md and printed.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from sparc_ref.model import SPARCConfig
from sparc_ref.run.files import put
from sparc_ref.run.rundir import load_run

DIFFERENCE = """\
vision/  SiglipVisionModel, vision_use_head false: last_hidden_state is SPARC's f_v; there is no pooling head.
text/    SiglipTextModel: last_hidden_state is SPARC's f_t, if the attention mask is given and false at padding.
         pooler_output is NOT t_bar: SigLIP takes the last token, SPARC the mean over real tokens. Its head is g_t.
sparc.safetensors  what SigLIP has no place for: h_v, g_v, g_t, theta. With them
         v = g_v(f_v), t = g_t(f_t), v_bar = g_v(gelu(h_v(mean f_v))), t_bar = g_t(mean of f_t over real tokens).
Keys have no bias in SPARC; theirs is 0. Pictures are resized to a square, bicubic, and normalised with mean and deviation 0.5.
"""
LAYER = {
    "norm1": "layer_norm1", "norm2": "layer_norm2", "attn.query": "self_attn.q_proj", "attn.key": "self_attn.k_proj",
    "attn.value": "self_attn.v_proj", "attn.out": "self_attn.out_proj", "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2",
}  # fmt: skip


def tower(params: dict[str, np.ndarray], ours: str, theirs: str) -> dict[str, np.ndarray]:
    """The blocks of one tower under SigLIP's names."""
    out = {}
    for name, x in params.items():
        if name.startswith(f"{ours}.blocks."):
            number, _, rest = name.removeprefix(f"{ours}.blocks.").partition(".")
            part, _, kind = rest.rpartition(".")
            out[f"{theirs}.encoder.layers.{number}.{LAYER[part]}.{kind}"] = x
            if part == "attn.key":
                out[f"{theirs}.encoder.layers.{number}.{LAYER[part]}.bias"] = np.zeros(len(x), x.dtype)
    return out


def vision(params: dict[str, np.ndarray], c: SPARCConfig) -> tuple[dict, dict[str, np.ndarray]]:
    """Configuration and weights of SiglipVisionModel."""
    weights = tower(params, "vision", "vision_model") | {
        "vision_model.embeddings.patch_embedding.weight":
            params["vision.patch.weight"].reshape(c.vision_width, 3, c.patch_size, c.patch_size),
        "vision_model.embeddings.patch_embedding.bias": params["vision.patch.bias"],
        "vision_model.embeddings.position_embedding.weight": params["vision.positions"],
        "vision_model.post_layernorm.weight": params["vision.norm.weight"],
        "vision_model.post_layernorm.bias": params["vision.norm.bias"],
    }  # fmt: skip
    return common(c, c.vision_width, c.vision_depth, c.vision_heads) | {
        "architectures": ["SiglipVisionModel"], "model_type": "siglip_vision_model", "image_size": c.image_size,
        "patch_size": c.patch_size, "num_channels": 3, "vision_use_head": False}, weights


def text(params: dict[str, np.ndarray], c: SPARCConfig) -> tuple[dict, dict[str, np.ndarray]]:
    """Configuration and weights of SiglipTextModel."""
    positions = params.get("text.positions", np.zeros((c.max_tokens, c.text_width), np.float32))
    weights = tower(params, "text", "text_model") | {
        "text_model.embeddings.token_embedding.weight": params["text.embedding.weight"],
        "text_model.embeddings.position_embedding.weight": positions,
        "text_model.final_layer_norm.weight": params["text.norm.weight"],
        "text_model.final_layer_norm.bias": params["text.norm.bias"],
        "text_model.head.weight": params["g_t.weight"], "text_model.head.bias": params["g_t.bias"],
    }  # fmt: skip
    return common(c, c.text_width, c.text_depth, c.text_heads) | {
        "architectures": ["SiglipTextModel"], "model_type": "siglip_text_model", "vocab_size": c.vocab_size,
        "max_position_embeddings": c.max_tokens, "projection_size": c.embed_dim, "pad_token_id": 0, "bos_token_id": None,
        "eos_token_id": None}, weights


def common(c: SPARCConfig, width: int, depth: int, heads: int) -> dict:
    return {"hidden_size": width, "intermediate_size": c.mlp_ratio * width, "num_hidden_layers": depth,
            "num_attention_heads": heads, "hidden_act": "gelu_pytorch_tanh" if c.gelu == "tanh" else "gelu",
            "layer_norm_eps": c.layer_norm_eps, "attention_dropout": 0.0, "torch_dtype": "float32"}


def write(run: Path, out: Path) -> None:
    """Everything, into a folder that is not there yet."""
    params, config, tokenizer, _ = load_run(run)
    params = {name: np.asarray(p, np.float32) for name, p in params.items()}
    out.mkdir(parents=True)
    for name, (about, weights) in {"vision": vision(params, config), "text": text(params, config)}.items():
        (out / name).mkdir()
        put(out / name / "config.json", json.dumps(about, indent=1).encode())
        arrays = {key: np.ascontiguousarray(x) for key, x in weights.items()}
        save_file(arrays, out / name / "model.safetensors", {"format": "pt"})
    preprocessor = {"image_processor_type": "SiglipImageProcessor", "do_resize": True, "resample": 3, "do_rescale": True,
                    "size": {"height": config.image_size, "width": config.image_size}, "rescale_factor": 1 / 255,
                    "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    put(out / "vision" / "preprocessor_config.json", json.dumps(preprocessor, indent=1).encode())
    heads = ("h_v.", "g_v.", "g_t.", "theta")
    save_file({name: np.array(p, order="C") for name, p in params.items() if name.startswith(heads)}, out / "sparc.safetensors")
    tokenizer.save(out / "tokenizer")
    put(out / "README.md", DIFFERENCE.encode())


@dataclass(frozen=True)
class HuggingFace:
    """Write the towers of a run's export as SigLIP's."""

    run: Path                       # a run directory, or a checkpoint that sparc-ref opens
    out: Path                       # a folder that is not there yet


def main(argv: list[str] | None = None) -> int:
    import tyro

    given = tyro.cli(HuggingFace, args=argv, prog="python -m parity.trainer.hugging_face")
    try:
        write(given.run, given.out)
    except (ValueError, OSError) as error:
        print(f"hugging_face: {error}", file=sys.stderr)
        return 2
    print(f"written: {given.out}\n{DIFFERENCE}", end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
