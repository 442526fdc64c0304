"""Level "ops": every differentiable primitive of sparc_ref.ops, its options and its edges.

B batch, L tokens, C width, K columns, N rows; one letter is one size in a case.
"""

from collections.abc import Callable

import numpy as np

from parity import oracle
from parity.vectors.cases.core import Definition, Draw, Function, lengths
from sparc_ref import ops

FLAGS = {
    "eps": "numbers so small that the epsilon of a norm decides: 1e-5 for 1e-6, or one in another place",
    "offset": "a mean far larger than the spread: variance as E[x^2] - E[x]^2, or single-pass sums in low precision",
    "large": "arguments at which exp, tanh or squares overflow unless the maximum is taken off",
    "masked": "places that take no part: weights or gradients that leak to them",
    "zero": "a vector of length 0: 0/0",
    "repeated": "an id that occurs several times, and one that never does: gradients overwritten in place of summed",
    "gelu": "the two forms of GELU differ by up to 5e-4: the other one is seen",
}


def op(function, *names):
    """Bind an op whose inputs are named in its order: -> (inputs, options) -> {"y"}, {}, back"""

    def ours(x, o):
        y, back = function(*(x[n] for n in names), **o)

        def gradients(ct):
            g = back(ct["y"])
            return dict(zip(names, g if isinstance(g, tuple) else (g,)))

        return {"y": y}, {}, gradients

    return ours


def plain(function, *names):
    """The same for the oracle."""
    return lambda x, o: ({"y": function(*(x[n] for n in names), **o)}, {})


def function(name, names, axes, shuffled):
    """An op of both libraries under one name."""
    return Function("ops", op(getattr(ops, name), *names), plain(getattr(oracle, name), *names), axes, shuffled)


def _embedding(x, o):
    y, back = ops.embedding(x["ids"], x["weight"])
    return {"y": y}, {}, lambda ct: {"weight": back(ct["y"])}


def _mlp(x, o):
    h, back_up = ops.linear(x["x"], x["up"], x["up_bias"])
    h, back_gelu = ops.gelu(h, **o)
    y, back_down = ops.linear(h, x["down"], x["down_bias"])

    def back(ct):
        dh, ddown, ddown_bias = back_down(ct["y"])
        return dict(zip(MLP, (*back_up(back_gelu(dh)), ddown, ddown_bias)))

    return {"y": y}, {}, back


def _masked(name) -> tuple[Callable, Callable]:
    """An op with an optional mask, which is among the inputs where the case has one."""

    def ours(x, o):
        y, back = getattr(ops, name)(x[first], **o, mask=x.get("mask"))
        return {"y": y}, {}, lambda ct: {first: back(ct["y"])}

    def theirs(x, o):
        return {"y": getattr(oracle, name)(x[first], **o, mask=x.get("mask"))}, {}

    first = {"masked_mean": "x", "attention": "qkv"}.get(name, "z")
    return ours, theirs


def _attention_oracle(x, o):
    return {"y": oracle.attention(*x["qkv"].chunk(3, -1), o["heads"], x.get("mask"))}, {}


def _widen(x, o):
    y, back = ops.at_least_float32(x["x"])
    return {"y": y}, {}, lambda ct: {"x": back(ct["y"])}


MLP = ("x", "up", "up_bias", "down", "down_bias")
FUNCTIONS = {
    "linear": function("linear", ("x", "weight", "bias"), {"x": "BLC", "weight": "KC", "bias": "K", "y": "BLK"}, "BLCK"),
    "linear_no_bias": Function("ops", op(ops.linear, "x", "weight"), plain(oracle.linear, "x", "weight"),
                               {"x": "BLC", "weight": "KC", "y": "BLK"}, "BLCK"),
    "standardize": function("standardize", ("x",), {"x": "BLC", "y": "BLC"}, "BLC"),
    "layer_norm": function("layer_norm", ("x", "gain", "shift"), {"x": "BLC", "gain": "C", "shift": "C", "y": "BLC"}, "BLC"),
    "gelu": function("gelu", ("x",), {"x": "NC", "y": "NC"}, "NC"),
    "mlp": Function("ops", _mlp, plain(oracle.mlp, *MLP),
                    {"x": "BLC", "up": "HC", "up_bias": "H", "down": "KH", "down_bias": "K", "y": "BLK"}, "BLCHK"),
    "softmax": Function("ops", *_masked("softmax"), {"z": "BLK", "mask": "BQK", "y": "BLK"}, "BLK"),
    "log_softmax": Function("ops", *_masked("log_softmax"), {"z": "BLK", "mask": "BQK", "y": "BLK"}, "BLK"),
    "l2_normalize": function("l2_normalize", ("x",), {"x": "BLD", "y": "BLD"}, "BLD"),
    "masked_mean": Function("ops", *_masked("masked_mean"), {"x": "BLC", "mask": "BL", "y": "BC"}, "BLC"),
    "attention": Function("ops", _masked("attention")[0], _attention_oracle, {"qkv": "BLT", "mask": "BL", "y": "BLC"}, "BL"),
    "embedding": Function("ops", _embedding, plain(oracle.embedding, "ids", "weight"),
                          {"ids": "BL", "weight": "VC", "y": "BLC"}, "BLC"),
    "patch_embedding": function("patch_embedding", ("images", "weight", "bias"),
                                {"images": "BRHW", "weight": "CK", "bias": "C", "y": "BPC"}, "BC"),
    "at_least_float32": Function("ops", _widen, lambda x, o: ({"y": x["x"]}, {}), {"x": "BD", "y": "BD"}, "BD"),
}
B, L, C, K, H = 3, 5, 7, 4, 11


def small(x, k):
    """x times 2**-k, exactly."""
    return (x * np.float32(2.0**-k)).astype(np.float32)


def cases():
    """Every case of this level."""
    return [*_towers(), *_rows(), *_tables()]


def _towers():
    d = Draw(101)
    x, weight, bias = d.normal(B, L, C), d.normal(K, C), d.normal(K)
    yield Definition("linear", "linear", {"x": x, "weight": weight, "bias": bias})
    yield Definition("linear_no_bias", "linear_no_bias", {"x": x, "weight": weight})
    spread = d.normal(B, L, C) * np.float32(3) + np.float32(1)
    gain, shift = d.normal(C), d.normal(C)
    yield Definition("standardize", "standardize", {"x": spread}, {"eps": 1e-6})
    yield Definition("standardize_eps", "standardize", {"x": small(d.normal(B, L, C), 10)}, {"eps": 1e-6}, ("eps",),
                     "The variance is about eps. Caught: 1e-5 or 1e-12 for 1e-6, eps outside of the root.")
    yield Definition("standardize_eps_large", "standardize", {"x": spread}, {"eps": 0.0625}, ("eps",),
                     "Caught: an eps that is built in.")
    far = d.normal(B, L, C) + np.float32(256)
    yield Definition("standardize_offset", "standardize", {"x": far}, {"eps": 1e-6}, ("offset",),
                     "A mean 256 times the spread. Caught: variance as E[x^2] - E[x]^2.")
    yield Definition("layer_norm", "layer_norm", {"x": spread, "gain": gain, "shift": shift}, {"eps": 1e-6})
    yield Definition("layer_norm_eps", "layer_norm", {"x": small(d.normal(B, L, C), 10), "gain": gain, "shift": shift},
                     {"eps": 1e-6}, ("eps",), "The variance is about eps. Caught: torch's default of 1e-5.")
    wide = np.concatenate([d.normal(8, C) * np.float32(2), np.array([[0, 16, -16, 30, -30, 1, -1]], np.float32)])
    for kind in ("tanh", "erf"):
        yield Definition(f"gelu_{kind}", "gelu", {"x": wide}, {"kind": kind}, ("gelu", "large"),
                         "Includes 0 and arguments far outside. Caught: the other form of GELU, sigmoid's form, NaN.")
    inputs = {"x": d.normal(B, L, C), "up": d.normal(H, C), "up_bias": d.normal(H)}
    inputs |= {"down": d.normal(K, H), "down_bias": d.normal(K)}
    for kind in ("tanh", "erf"):
        yield Definition(f"mlp_{kind}", "mlp", inputs, {"kind": kind})
    qkv = d.normal(B, L, 3 * 8)
    mask = lengths(L, 5, 2, 4)
    for heads in (1, 2, 4):
        yield Definition(f"attention_{heads}", "attention", {"qkv": qkv}, {"heads": heads},
                         note="Caught: heads cut along the wrong axis, 1/sqrt(C) for 1/sqrt(C/heads), queries for keys.")
    yield Definition("attention_padding", "attention", {"qkv": qkv, "mask": mask}, {"heads": 2}, ("masked",),
                     "Padding is no key, but still asks. Caught: padded keys in the softmax, the mask on queries.")
    yield Definition("attention_all_padding", "attention", {"qkv": qkv, "mask": lengths(L, 5, 0, 1)}, {"heads": 2},
                     ("masked", "all_padding"), "A caption of padding alone gets 0, and no gradient. Caught: NaN.")
    yield Definition("attention_one_token", "attention", {"qkv": qkv[:, :1]}, {"heads": 2}, ("one_token",),
                     "L = 1: the value. Caught: squeezed axes.")
    yield Definition("attention_large", "attention", {"qkv": qkv * np.float32(16)}, {"heads": 2}, ("large",),
                     "Scores of several hundred. Caught: exp without its maximum taken off.")


def _rows():
    d = Draw(102)
    z, mask = d.normal(B, L, K) * np.float32(3), lengths(K, 4, 2, 3)[:, None, :]
    for name in ("softmax", "log_softmax"):
        yield Definition(name, name, {"z": z})
        yield Definition(f"{name}_large", name, {"z": z * np.float32(64)}, {}, ("large",),
                         "Logits of several hundred. Caught: exp without its maximum taken off, log of 0.")
        yield Definition(f"{name}_masked", name, {"z": z, "mask": mask}, {}, ("masked",),
                         "Masked columns have value 0 and no gradient. Caught: a large number in place of a mask.")
        none = {"z": z, "mask": lengths(K, 4, 0, 1)[:, None, :]}
        yield Definition(f"{name}_nothing", name, none, {}, ("masked", "all_padding"),
                         "Rows with every column masked are 0; rows with one column left are 1 (or log 1). Caught: NaN.")
    x = d.normal(B, L, 6)
    yield Definition("l2_normalize", "l2_normalize", {"x": x})
    yield Definition("l2_normalize_small", "l2_normalize", {"x": small(x, 30)}, {}, ("eps",),
                     "Vectors of length 3e-9. Caught: an epsilon of 1e-8 or more (torch's cosine_similarity).")
    some = x * (np.arange(L) != 2)[:, None].astype(np.float32)
    upstream = d.normal(B, L, 6) * (np.arange(L) != 2)[:, None].astype(np.float32)
    yield Definition("l2_normalize_zero", "l2_normalize", {"x": some}, {}, ("zero",),
                     "Some vectors are 0, and so is what comes back for them. Caught: NaN.", upstream={"y": upstream})
    x, mask = d.normal(B, L, C), lengths(L, 5, 1, 3)
    yield Definition("masked_mean", "masked_mean", {"x": x, "mask": mask}, {}, ("masked",),
                     "Caught: division by L for L_i, padding in the sum.")
    yield Definition("masked_mean_plain", "masked_mean", {"x": x})
    yield Definition("masked_mean_nothing", "masked_mean", {"x": x, "mask": lengths(L, 5, 0, 2)}, {}, ("masked", "all_padding"),
                     "A caption of padding alone has the mean 0. Caught: 0/0.")
    huge = np.where(mask[..., None], x, np.float32(1e30)).astype(np.float32)
    yield Definition("masked_mean_huge", "masked_mean", {"x": huge, "mask": mask}, {}, ("masked", "padding"),
                     "Padding holds 1e30. Caught: a mask by multiplication after the sum, or by subtraction.")
    for dtype in ("float16", "bfloat16"):
        yield Definition(f"at_least_float32_{dtype}", "at_least_float32", {"x": d.coarse(B, 6)}, {}, ("half",),
                         "Caught: a gradient that does not come back in the input's own type.", input_dtype=dtype)


def _tables():
    d = Draw(103)
    ids = np.array([[4, 0, 4, 2, 8], [2, 4, 0, 4, 1], [7, 7, 4, 0, 1]])
    yield Definition("embedding", "embedding", {"ids": ids, "weight": d.normal(9, C)}, {}, ("repeated",),
                     "Ids that occur five times, once, never. Caught: gradients overwritten, or divided by the count.")
    images = d.normal(2, 3, 6, 10)
    inputs = {"images": images, "weight": d.normal(7, 12), "bias": d.normal(7)}
    yield Definition("patch_embedding", "patch_embedding", inputs, {"patch": 2},
                     note="Caught: patches in column order, pixels in the order row, column, channel.")
