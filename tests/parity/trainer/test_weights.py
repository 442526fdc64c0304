"""Weights in and out: what is taken, dropped and drawn is said by name; other layouts there and back."""


import json
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
import torch
from made_shards import shards
from safetensors.numpy import save_file
from safetensors.torch import load_file
from safetensors.torch import save_file as save_torch
from test_model import TOY

from parity.trainer import hugging_face, open_clip, tokenizer
from parity.trainer.export import take_weights
from parity.trainer.model import SPARC, dump_params, init_weights, load_params
from sparc_ref.data import UnigramTokenizer, WordTokenizer, load_tokenizer
from sparc_ref.model import init_params
from sparc_ref.optim import adamw_init
from sparc_ref.run import checkpoint

CONFIG = replace(TOY, temperature="shared")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Random parameters, in a checkpoint that sparc-ref wrote, and as SigLIP's towers."""
    folder = tmp_path_factory.mktemp("hf")
    rng = np.random.default_rng(5)
    params = {name: rng.standard_normal(p.shape).astype(np.float32) for name, p in init_params(CONFIG, rng).items()}
    words = WordTokenizer([f"w{n}" for n in range(CONFIG.vocab_size - 3)])
    record = {"config": {"model": asdict(CONFIG), "train": {"warmup": 1, "eval_limit": 8}, "data": {}, "validation": {},
                         "tokenizer": "words"}}
    path = checkpoint.save(folder / "checkpoints", 1, params, adamw_init(params), record, words)
    assert hugging_face.main(["--run", str(path), "--out", str(folder / "out")]) == 0
    assert open_clip.main(["--run", str(path), "--out", str(folder / "open_clip")]) == 0
    return params, folder / "out"


def test_there_and_back(written):
    params, out = written
    model = init_weights(SPARC(CONFIG), 1)
    for name in ("vision", "text"):
        found = take_weights(model, out / name / "model.safetensors")
        depth = CONFIG.vision_depth if name == "vision" else CONFIG.text_depth
        assert len([n for n in found.dropped if n.endswith("k_proj.bias")]) == depth
        assert set(found.dropped) <= {n for n in found.dropped if n.endswith("k_proj.bias") or "head" in n}
        assert found.taken and all(n.startswith(f"{name}.") for n in found.taken)
        assert not any(n.startswith(f"{name}.") for n in found.drawn)
    found = take_weights(model, out / "sparc.safetensors")
    assert {n.partition(".")[0] for n in found.taken} == {"h_v", "g_v", "g_t", "theta"}
    for name, p in dump_params(model).items():
        np.testing.assert_array_equal(p, params[name], name)
    assert hugging_face.main(["--run", str(out), "--out", str(out)]) == 2


def test_hugging_face_computes_the_same_features(written):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: SigLIP's towers are not compared")
    _, out = written
    model = SPARC(CONFIG)
    take_weights(model, out / "sparc.safetensors")
    for name in ("vision", "text"):
        take_weights(model, out / name / "model.safetensors")
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, CONFIG.image_size, CONFIG.image_size, generator=rng)
    tokens = torch.randint(0, CONFIG.vocab_size, (3, CONFIG.max_tokens), generator=rng)
    mask = torch.arange(CONFIG.max_tokens) < torch.tensor([CONFIG.max_tokens, 3, 2])[:, None]
    with torch.no_grad():
        ours = model(images, tokens, mask)
        f_v = transformers.SiglipVisionModel.from_pretrained(out / "vision")(images).last_hidden_state
        f_t = transformers.SiglipTextModel.from_pretrained(out / "text")(tokens, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(f_v, ours["image_features"], rtol=0, atol=2e-4)
    torch.testing.assert_close(f_t[mask], ours["text_features"][mask], rtol=0, atol=2e-4)


def test_towers_of_hugging_face_compute_the_same_when_taken(tmp_path):
    """SigLIP's towers with random weights, every bias too: a key bias, which softmax cancels, is dropped."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: its towers are not taken")
    c = CONFIG
    common = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": c.layer_norm_eps}
    sizes = {"vision": {"image_size": c.image_size, "patch_size": c.patch_size},
             "text": {"vocab_size": c.vocab_size, "max_position_embeddings": c.max_tokens}}
    rng = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, c.image_size, c.image_size, generator=rng)
    tokens = torch.randint(0, c.vocab_size, (3, c.max_tokens), generator=rng)
    mask = torch.arange(c.max_tokens) < torch.tensor([c.max_tokens, 3, 2])[:, None]
    model, theirs = init_weights(SPARC(c), 2), {}
    for name, (config, tower) in {"vision": (transformers.SiglipVisionConfig, transformers.SiglipVisionModel),
                                  "text": (transformers.SiglipTextConfig, transformers.SiglipTextModel)}.items():
        width, depth, heads = (getattr(c, f"{name}_{size}") for size in ("width", "depth", "heads"))
        theirs[name] = tower(config(hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
                                    intermediate_size=c.mlp_ratio * width, **sizes[name], **common)).eval()
        for p in theirs[name].parameters():
            p.data.copy_(torch.randn(p.shape, generator=rng) / 4)
        theirs[name].save_pretrained(tmp_path / name)
        found = take_weights(model, tmp_path / name / "model.safetensors")
        assert all(n.startswith(f"{name}.") for n in found.taken) and not any(n.startswith(f"{name}.") for n in found.drawn)
        assert all("k_proj.bias" in n or "head" in n for n in found.dropped), found.dropped
    with torch.no_grad():
        ours = model(images, tokens, mask)
        f_v = theirs["vision"](images).last_hidden_state
        f_t = theirs["text"](tokens, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(f_v, ours["image_features"], rtol=0, atol=1e-5)
    torch.testing.assert_close(f_t[mask], ours["text_features"][mask], rtol=0, atol=1e-5)


def draws():
    """Pictures, tokens without the id of padding, and which of them are real."""
    rng = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, CONFIG.image_size, CONFIG.image_size, generator=rng)
    tokens = torch.randint(1, CONFIG.vocab_size, (3, CONFIG.max_tokens), generator=rng)
    return images, tokens, torch.arange(CONFIG.max_tokens) < torch.tensor([CONFIG.max_tokens, 3, 2])[:, None]


def of_others(out):
    """timm's and open_clip's own towers, as open_clip.py says they are to be made."""
    others = [pytest.importorskip(name, exc_type=ImportError, reason=f"{name} cannot be imported: its towers are not compared")
              for name in ("timm", "open_clip")]
    how = {"norm_layer": partial(torch.nn.LayerNorm, eps=CONFIG.layer_norm_eps),
           "act_layer": partial(torch.nn.GELU, approximate="tanh")}
    about = {name: json.loads((out / f"{name}.json").read_text()) for name in ("vision", "text")}
    return {"vision": others[0].models.VisionTransformer(**about["vision"], **how).eval(),
            "text": others[1].transformer.TextTransformer(**about["text"], **how, output_tokens=True).eval()}


def agree(model, theirs, tolerance):
    images, tokens, mask = draws()
    with torch.no_grad():
        ours = model(images, tokens, mask)
        f_v, f_t = theirs["vision"].forward_features(images), theirs["text"](torch.where(mask, tokens, 0))[1]
    torch.testing.assert_close(f_v, ours["image_features"], rtol=0, atol=tolerance)
    torch.testing.assert_close(f_t[mask], ours["text_features"][mask], rtol=0, atol=tolerance)


def test_open_clips_layout_there_and_back(written):
    """Every parameter comes back; of theirs only the key's part of what is packed is left."""
    params, out = written[0], written[1].parent / "open_clip"
    model = init_weights(SPARC(CONFIG), 1)
    for name in ("vision", "text"):
        found = take_weights(model, out / f"{name}.safetensors")
        assert set(found.dropped.values()) == {"keys have no bias here: softmax cancels it"}
        assert all("[key]" in n and "bias" in n for n in found.dropped)
        assert found.taken and all(n.startswith(f"{name}.") for n in found.taken)
        assert not any(n.startswith(f"{name}.") for n in found.drawn)
    take_weights(model, out / "sparc.safetensors")
    for name, p in dump_params(model).items():
        np.testing.assert_array_equal(p, params[name], name)
    assert "t_bar" in (out / "README.md").read_text() and open_clip.main(["--run", str(out), "--out", str(out)]) == 2


def test_timm_and_open_clip_compute_the_same_features(written):
    params, out = written[0], written[1].parent / "open_clip"
    theirs = of_others(out)
    for name, tower in theirs.items():
        tower.load_state_dict(load_file(out / f"{name}.safetensors"), strict=True)
    agree(load_params(SPARC(CONFIG), params), theirs, 2e-4)


def test_towers_of_timm_and_open_clip_compute_the_same_when_taken(written, tmp_path):
    """With random weights, every bias too, alone and as an open_clip model holds them: visual.trunk and text."""
    theirs = of_others(written[1].parent / "open_clip")
    rng = torch.Generator().manual_seed(4)
    for tower in theirs.values():
        for p in tower.parameters():
            p.data.copy_(torch.randn(p.shape, generator=rng) / 4)
    files = {"vision": theirs["vision"].state_dict(), "text": theirs["text"].state_dict()}
    files["both"] = {f"visual.trunk.{n}": x for n, x in files["vision"].items()} | {
        f"text.{n}": x for n, x in files["text"].items()} | {"logit_scale": torch.tensor(2.0)}
    for name, tensors in files.items():
        save_torch({n: x.contiguous() for n, x in tensors.items()}, tmp_path / f"{name}.safetensors")
    for which in (("vision", "text"), ("both",)):
        model = init_weights(SPARC(CONFIG), 2)
        for name in which:
            found = take_weights(model, tmp_path / f"{name}.safetensors")
            assert all("[key]" in n or n == "logit_scale" for n in found.dropped), found.dropped
        agree(model, theirs, 1e-5)


@pytest.mark.parametrize("layout", ["timm", "open_clip"])
def test_every_name_of_timm_and_open_clip_is_accounted_for(tmp_path, layout):
    """A ViT with class token, layer scale and head; CLIP's two towers in one file, the text tower's names without a prefix."""
    c, rng = CONFIG, np.random.default_rng(0)
    width, p, patches = c.vision_width, c.patch_size, (c.image_size // c.patch_size) ** 2
    patch, packed = (width, 3, p, p), (3 * width, width)
    files = {"timm": {
        "cls_token": (1, 1, width), "pos_embed": (1, patches + 1, width), "patch_embed.proj.weight": patch,
        "blocks.0.attn.qkv.weight": packed, "blocks.0.attn.qkv.bias": (3 * width,), "blocks.0.attn.proj.bias": (width,),
        "blocks.0.ls1.gamma": (width,), "blocks.0.attn.q_norm.weight": (width,), "norm.bias": (width,),
        "fc_norm.weight": (width,), "head.weight": (10, width)}, "open_clip": {
        "visual.class_embedding": (width,), "visual.positional_embedding": (patches + 1, width), "visual.conv1.weight": patch,
        "visual.ln_pre.weight": (width,), "visual.ln_post.bias": (width,), "visual.proj": (width, 5),
        "visual.transformer.resblocks.0.attn.in_proj_weight": packed,
        "visual.transformer.resblocks.0.attn.in_proj_bias": (3 * width,),
        "visual.transformer.resblocks.0.attn.out_proj.bias": (width,), "token_embedding.weight": (c.vocab_size, c.text_width),
        "positional_embedding": (c.max_tokens, c.text_width), "transformer.resblocks.0.ln_1.weight": (c.text_width,),
        "transformer.resblocks.0.mlp.c_fc.weight": (c.mlp_ratio * c.text_width, c.text_width), "ln_final.bias": (c.text_width,),
        "text_projection": (c.text_width, 5), "logit_scale": ()}}  # fmt: skip
    tensors = {n: np.asarray(rng.standard_normal(shape), np.float32) for n, shape in files[layout].items()}
    save_file(tensors, tmp_path / "file.safetensors")
    model = init_weights(SPARC(c), 3)
    before = dump_params(model)
    found = take_weights(model, tmp_path / "file.safetensors")
    after = dump_params(model)
    block = {"timm": "blocks.0.attn.qkv.", "open_clip": "visual.transformer.resblocks.0.attn.in_proj_"}[layout]
    ours = {f"vision.blocks.0.attn.{part}.{kind}": f"{block}{kind}[{part}]" for part in ("query", "key", "value")
            for kind in ("weight", "bias") if (part, kind) != ("key", "bias")}
    ours |= {"timm": {
        "vision.positions": "pos_embed", "vision.patch.weight": "patch_embed.proj.weight",
        "vision.blocks.0.attn.out.bias": "blocks.0.attn.proj.bias", "vision.norm.bias": "norm.bias"}, "open_clip": {
        "vision.positions": "visual.positional_embedding", "vision.patch.weight": "visual.conv1.weight",
        "vision.norm.bias": "visual.ln_post.bias",
        "vision.blocks.0.attn.out.bias": "visual.transformer.resblocks.0.attn.out_proj.bias",
        "text.embedding.weight": "token_embedding.weight", "text.positions": "positional_embedding",
        "text.blocks.0.norm1.weight": "transformer.resblocks.0.ln_1.weight",
        "text.blocks.0.mlp.up.weight": "transformer.resblocks.0.mlp.c_fc.weight", "text.norm.bias": "ln_final.bias"}}[layout]
    assert found.taken == ours
    assert set(found.taken) | set(found.drawn) == set(before)
    told = {source.partition("[")[0] for source in (*found.taken.values(), *found.dropped)}
    assert told == set(tensors)
    x = tensors[f"{block}weight"]
    for i, part in enumerate(("query", "key", "value")):
        np.testing.assert_array_equal(after[f"vision.blocks.0.attn.{part}.weight"], x[i * width:(i + 1) * width])
    for name in found.drawn:
        np.testing.assert_array_equal(before[name], after[name], name)


def test_a_text_tower_that_does_not_say_so_is_no_vision_tower(tmp_path):
    c = replace(CONFIG, text_width=CONFIG.vision_width, text_heads=CONFIG.vision_heads)
    shapes = {"embeddings.token_embedding.weight": (c.vocab_size, c.text_width),
              "encoder.layers.0.mlp.fc1.bias": (c.mlp_ratio * c.text_width,)}
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, tmp_path / "text.safetensors")
    found = take_weights(SPARC(c), tmp_path / "text.safetensors")
    assert set(found.taken) == {"text.embedding.weight", "text.blocks.0.mlp.up.bias"}


def test_every_name_is_accounted_for(tmp_path):
    """A ViT in Hugging Face's older layout: class token and its position dropped, positions of another grid too."""
    rng = np.random.default_rng(0)
    width, p = CONFIG.vision_width, CONFIG.patch_size
    patches = (CONFIG.image_size // p) ** 2
    tensors = {
        "vit.embeddings.cls_token": (1, 1, width), "vit.embeddings.position_embeddings": (1, patches + 1, width),
        "vit.embeddings.patch_embeddings.projection.weight": (width, 3, p, p), "vit.layernorm.weight": (width,),
        "vit.encoder.layer.0.attention.attention.query.weight": (width, width), "classifier.weight": (10, width),
        "vit.encoder.layer.0.attention.output.dense.bias": (width,), "vit.encoder.layer.0.intermediate.dense.bias": (7,),
        "vit.encoder.layer.99.layernorm_before.weight": (width,),
    }  # fmt: skip
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in tensors.items()}
    save_file(tensors, tmp_path / "vit.safetensors")
    model = init_weights(SPARC(CONFIG), 3)
    before = dump_params(model)
    found = take_weights(model, tmp_path / "vit.safetensors")
    after = dump_params(model)
    assert found.taken == {
        "vision.positions": "vit.embeddings.position_embeddings", "vision.norm.weight": "vit.layernorm.weight",
        "vision.patch.weight": "vit.embeddings.patch_embeddings.projection.weight",
        "vision.blocks.0.attn.query.weight": "vit.encoder.layer.0.attention.attention.query.weight",
        "vision.blocks.0.attn.out.bias": "vit.encoder.layer.0.attention.output.dense.bias"}
    np.testing.assert_array_equal(after["vision.positions"], tensors["vit.embeddings.position_embeddings"][0, 1:])
    assert found.dropped["vit.embeddings.position_embeddings[0]"] == "the class token's position"
    assert found.dropped["vit.encoder.layer.0.intermediate.dense.bias"].startswith("is (7,), not (")
    assert set(found.taken) | set(found.drawn) == set(before) and set(tensors) <= {*found.taken.values(), *found.dropped}
    for name in found.drawn:
        np.testing.assert_array_equal(before[name], after[name], name)
    text = str(found)
    assert "taken 5, dropped 5" in text and "  dropped classifier.weight: this model has none of that name" in text
    only = take_weights(init_weights(SPARC(CONFIG), 3), tmp_path / "vit.safetensors", only=("vision.norm",))
    assert list(only.taken) == ["vision.norm.weight"]
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        take_weights(model, tmp_path / "bad.safetensors")


def test_a_tokenizer_is_learned_from_shards(tmp_path, capsys):
    shards(tmp_path / "data", [40, 40])
    argv = ["--data", f"shards:{tmp_path}/data/*.tar", "--vocab-size", "60", "--sample", "50"]
    for name in ("one", "two"):
        assert tokenizer.main([*argv, "--out", str(tmp_path / name)]) == 0
    found = load_tokenizer(tmp_path / "one")
    assert isinstance(found, UnigramTokenizer) and 3 < found.vocab_size <= 60
    assert found.hash == load_tokenizer(tmp_path / "two").hash and found.encode("red dog").ids
    assert tokenizer.main(["--data", "shards:none*.tar", "--out", str(tmp_path / "x")]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "one", "two"]
    assert "expected shards, found none" in capsys.readouterr().err
