"""Level "encoders": both towers, position resizing, the image head.

B batch, L tokens, P patches, O learned positions, C and E widths of the towers, D joint width, R channels, I x J pixels.
"""

from types import SimpleNamespace

import numpy as np

from parity import oracle
from parity.vectors.cases.core import Definition, Draw, Function, lengths
from sparc_ref import model, ops
from sparc_ref.encoders import part, resize_positions, text_tower, vision_tower

FLAGS = {
    "resize": "another image size: positions interpolated with another kernel, aligned corners, antialiasing, swapped axes",
    "no_blocks": "a tower without blocks: embedding and last norm alone",
}

# No two sizes alike: B 4, L 5, P 9, C 10, E 6, D 7, hidden 30 and 18, vocabulary 13, positions 9 and 8, patch pixels 48.
TOY = {
    "image_size": 12, "patch_size": 4, "vision_width": 10, "vision_depth": 1, "vision_heads": 2, "text_width": 6,
    "text_depth": 1, "text_heads": 3, "vocab_size": 13, "max_tokens": 8, "embed_dim": 7, "mlp_ratio": 3,
}
BLOCK = {
    "norm1.weight": "w", "norm1.bias": "w", "attn.query.weight": "ww", "attn.query.bias": "w", "attn.key.weight": "ww",
    "attn.value.weight": "ww", "attn.value.bias": "w", "attn.out.weight": "ww", "attn.out.bias": "w", "norm2.weight": "w",
    "norm2.bias": "w", "mlp.up.weight": "hw", "mlp.up.bias": "h", "mlp.down.weight": "wh", "mlp.down.bias": "w",
}
PARAMETERS = {
    "vision.patch.weight": "CK", "vision.patch.bias": "C", "vision.positions": "OC", "vision.norm.weight": "C",
    "vision.norm.bias": "C", "text.embedding.weight": "VE", "text.positions": "ME", "text.norm.weight": "E",
    "text.norm.bias": "E", "h_v.weight": "CC", "h_v.bias": "C", "g_v.weight": "DC", "g_v.bias": "D", "g_t.weight": "DE",
    "g_t.bias": "D", "theta": "",
    "theta_fine": "",
}
for tower, width, hidden in (("vision", "C", "H"), ("text", "E", "G")):
    for i in range(2):
        PARAMETERS |= {f"{tower}.blocks.{i}.{n}": x.replace("w", width).replace("h", hidden) for n, x in BLOCK.items()}
AXES = PARAMETERS | {"images": "BRIJ", "tokens": "BL", "mask": "BL"}


def draw_params(draw, shapes, theta=2.0):
    """Parameters far from initial ones.      shapes: by name -> arrays"""
    params = {}
    for name, shape in shapes.items():
        x = draw.normal(*shape) * np.float32(0.5)
        params[name] = x + np.float32(1) if "norm" in name and name.endswith("weight") else x
    return params | {name: np.asarray(theta, np.float32) for name in shapes if name.startswith("theta")}


def toy_params(draw, prefix, **changes):
    """Parameters of the toy model whose names start with `prefix`."""
    shapes = model.parameter_shapes(model.SPARCConfig(**TOY | changes))
    return draw_params(draw, {n: s for n, s in shapes.items() if n.startswith(prefix)})


def _vision(x, o):
    p = part(x, "vision.")
    y, back = vision_tower(p, x["images"], patch=o["patch_size"], grid=(o["image_size"] // o["patch_size"],) * 2,
                           heads=o["vision_heads"], gelu=o["gelu"], eps=o["layer_norm_eps"], resize=o["position_resize"])
    return {"y": y}, {}, lambda ct: {f"vision.{n}": g for n, g in back(ct["y"]).items()}


def _text(x, o):
    tokens = ops.array_namespace(x["tokens"]).where(x["mask"], x["tokens"], 0 * x["tokens"])
    y, back = text_tower(part(x, "text."), tokens, x["mask"], heads=o["text_heads"], gelu=o["gelu"], eps=o["layer_norm_eps"])
    return {"y": y}, {}, lambda ct: {f"text.{n}": g for n, g in back(ct["y"]).items()}


def _text_oracle(x, o):
    c = SimpleNamespace(**o, text_positions="learned" if "text.positions" in x else "none")
    return {"y": oracle.text(x, x["tokens"], x["mask"], c)}, {}


def _head(x, o):
    y, back = model._image_head(x, x["x"], SimpleNamespace(**o))

    def gradients(ct):
        dx, g = back(ct["y"])
        return {"x": dx, **g}

    return {"y": y}, {}, gradients


def _resize(x, o):
    y, back = resize_positions(x["positions"], tuple(o["grid"]), tuple(o["here"]), o["kind"])
    return {"y": y}, {}, lambda ct: {"positions": back(ct["y"])}


FUNCTIONS = {
    "vision_tower": Function("encoders", _vision, lambda x, o: ({"y": oracle.vision(x, x["images"], SimpleNamespace(**o))}, {}),
                             AXES | {"y": "BPC"}, "BH", constant=("images",)),
    "text_tower": Function("encoders", _text, _text_oracle, AXES | {"y": "BLE"}, "BG", padded=True),
    "image_head": Function("encoders", _head, lambda x, o: ({"y": oracle.image_head(x, x["x"], SimpleNamespace(**o))}, {}),
                           PARAMETERS | {"x": "BPC", "y": "BPD"}, "BPD"),
    "resize_positions": Function(
        "encoders", _resize,
        lambda x, o: ({"y": oracle.resize_positions(x["positions"], o["grid"], o["here"], o["kind"])}, {}),
        {"positions": "OC", "y": "PC"}, "C"),
}
VISION = {"image_size": 12, "patch_size": 4, "vision_heads": 2, "gelu": "tanh", "layer_norm_eps": 1e-6,
          "position_resize": "bicubic"}
TEXT = {"text_heads": 3, "gelu": "tanh", "layer_norm_eps": 1e-6}


def cases():
    """Every case of this level."""
    return [*_resizing(), *_vision_cases(), *_text_cases(), *_head_cases()]


def _resizing():
    d = Draw(201)
    grids = {"larger": ((3, 4), (5, 7)), "smaller": ((5, 7), (3, 4)), "longer": ((3, 4), (9, 2)), "one": ((3, 4), (1, 1))}
    for kind in ("bicubic", "linear"):
        for name, (grid, here) in grids.items():
            yield Definition(f"resize_{kind}_{name}", "resize_positions", {"positions": d.normal(grid[0] * grid[1], 8)},
                             {"grid": list(grid), "here": list(here), "kind": kind}, ("resize",),
                             "Caught: another kernel (a = -0.5), aligned corners, antialiasing, rows for columns.")


def _vision_cases():
    d = Draw(202)
    square, wide, five = d.normal(4, 3, 12, 12), d.normal(4, 3, 12, 20), d.normal(5, 3, 8, 8)
    params = toy_params(d, "vision.", vision_depth=2)
    one = {n: x for n, x in params.items() if ".blocks.1." not in n}

    def case(name, images, p, flags=("ordinary",), note="", **options):
        return Definition(f"vision_{name}", "vision_tower", {"images": images, **p}, VISION | options, flags, note)

    yield case("default", square, params, note="Two blocks. Caught: post-norm, a missing last norm, a [CLS] token, patches in "
               "the order of columns, a key bias.")
    yield case("gelu_erf", square, one, ("gelu",), "Caught: the tanh form.", gelu="erf")
    yield case("resize_bicubic", wide, one, ("resize",), "3 x 5 patches, positions learned for 3 x 3. Caught: rows for "
               "columns, another kernel.")
    yield case("resize_linear", wide, one, ("resize",), "The same, interpolated linearly. Caught: bicubic.",
               position_resize="linear")
    yield case("resize_smaller", five[:, :, :8, :8], one, ("resize",), "2 x 2 patches. Caught: antialiasing.")
    yield case("one_patch", five[:, :, :4, :4], one, ("one_patch", "resize"), "P = 1. Caught: squeezed axes.")
    none = {n: x for n, x in params.items() if ".blocks." not in n}
    yield case("no_blocks", square, none, ("no_blocks",), "Patch embedding, positions and the last norm. Caught: a norm too "
               "few or too many.")
    tiny = {n: x * np.float32(2**-10) if n in ("vision.patch.weight", "vision.patch.bias", "vision.positions") else x
            for n, x in one.items()}
    yield case("eps", square, tiny, ("eps",), "What the first norm sees is small. Caught: 1e-5, torch's default, for 1e-6.")


def _text_cases():
    d = Draw(203)
    mask, params = lengths(5, 5, 2, 4, 3), toy_params(d, "text.", text_depth=2)
    tokens = d.ids(13, 4, 5)
    one = {n: x for n, x in params.items() if ".blocks.1." not in n}

    def case(name, p, flags=("ordinary",), note="", tokens=tokens, mask=mask, **options):
        return Definition(f"text_{name}", "text_tower", {"tokens": tokens, "mask": mask, **p}, TEXT | options, flags, note)

    yield case("default", params, note="Two blocks, padded. Caught: padded keys, causal attention, positions counted from 1.")
    yield case("gelu_erf", one, ("gelu",), "Caught: the tanh form.", gelu="erf")
    bag = {n: x for n, x in one.items() if n != "text.positions"}
    yield case("no_positions", bag, note="A caption is a bag of tokens.")
    yield case("no_padding", one, note="Every token is real.", mask=lengths(5, 5, 5, 5, 5))
    yield case("all_padding", one, ("all_padding",), "A caption of padding alone. Caught: NaN that reaches others.",
               mask=lengths(5, 5, 0, 1, 3))
    yield case("padding_ids", one, ("padding",), "Padded places hold other ids, some outside of the vocabulary. Caught: an "
               "index error, gradients of rows that no real token reads.",
               tokens=np.where(mask, tokens, np.array([-100, 12, 99, -1, 7])))
    yield case("one_token", one, ("one_token",), "L = 1. Caught: squeezed axes.", tokens=tokens[:, :1], mask=mask[:, :1])
    none = {n: x for n, x in one.items() if ".blocks." not in n}
    yield case("no_blocks", none, ("no_blocks",), "Embedding, positions and the last norm. Caught: a norm too few or too many.")


def _head_cases():
    d = Draw(204)
    params = toy_params(d, ("h_v.", "g_v."))
    x = d.normal(4, 9, 10)
    for kind in ("tanh", "erf"):
        yield Definition(f"image_head_{kind}", "image_head", {"x": x, **params}, {"h_v": "dense_gelu", "gelu": kind},
                         note="g_v(h_v(x)) of every patch: zero-shot segmentation. Caught: h_v left out.")
    bare = {n: p for n, p in params.items() if n.startswith("g_v")}
    yield Definition("image_head_none", "image_head", {"x": x, **bare}, {"h_v": "none", "gelu": "tanh"}, note="g_v alone.")
