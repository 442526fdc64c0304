"""The whole model: every gradient by three witnesses, under every option; its trace, its presets, its errors."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from witness import AUTOGRAD, close

from parity import oracle
from sparc_ref import PRESETS, SPARCConfig, encode_images, encode_texts, forward, init_params
from sparc_ref.backend import to_numpy
from sparc_ref.model import parameter_shapes

TOY = SPARCConfig(  # no two sizes alike
    image_size=12, patch_size=4, vision_width=10, vision_depth=2, vision_heads=2, text_width=6, text_depth=1, text_heads=3,
    vocab_size=13, max_tokens=8, embed_dim=7, mlp_ratio=2,
)  # fmt: skip
VARIANTS = {
    "default": {},
    "erf": {"gelu": "erf"},
    "no text positions": {"text_positions": "none"},
    "pool all": {"text_pool": "all"},
    "no h_v": {"h_v": "none"},
    "separate temperatures": {"temperature": "separate"},
    "token reduction": {"reduction": "token"},
    "sigma": {"sigma": 0.3},
    "cosine": {"similarity": "cosine"},
    "softmax": {"align": "softmax"},
    "no threshold": {"align": "no_threshold"},
    "threshold on weights": {"threshold_on": "weights"},
    "global alone": {"lambda_f": 0.0},
    "fine alone": {"lambda_g": 0.0, "lambda_f": 5.0},
    "no blocks": {"vision_depth": 0, "text_depth": 0},
    "larger picture": {"size": (20, 16)},
    "larger picture, linear": {"size": (20, 16), "position_resize": "linear"},
    "one patch": {"size": (4, 4)},
    "one token": {"length": 1},
}


def make(rng, config, size=None, length=5, batch=3):
    """Random parameters, far from initial ones, and a batch with padding whose ids are nonsense."""
    params = {n: np.asarray(rng.standard_normal(s) * (0.5 if s else 1)) for n, s in parameter_shapes(config).items()}
    params = {n: p + 1 if "norm" in n and n.endswith("weight") else p for n, p in params.items()}
    images = rng.standard_normal((batch, 3, *(size or (config.image_size,) * 2)))
    mask = np.arange(length) < np.array([length, 2, 1])[:batch, None]
    tokens = np.where(mask, rng.integers(0, config.vocab_size, mask.shape), -100)
    return params, images, tokens, mask


def variant(name):
    options = dict(VARIANTS[name])
    shape = {key: options.pop(key) for key in ("size", "length") if key in options}
    return replace(TOY, **options), shape


@pytest.mark.parametrize("name", VARIANTS)
def test_every_gradient(rng, name):
    config, shape = variant(name)
    params, *batch = make(rng, config, **shape)
    loss, _, back = forward(params, *batch, config)
    grads = back(0.7)
    assert grads.keys() == params.keys()

    leaves = {n: torch.tensor(p, requires_grad=True) for n, p in params.items()}
    expected = oracle.model(leaves, *(torch.tensor(x) for x in batch), config)
    expected.backward(torch.tensor(0.7, dtype=torch.float64))
    close(loss, expected.detach().numpy(), "loss")
    largest = max(float(leaf.grad.abs().max()) for leaf in leaves.values() if leaf.grad is not None)
    for n, leaf in leaves.items():
        theirs = np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy()
        if np.max(np.abs(theirs), initial=0) > 1e-10 * largest:
            close(grads[n], theirs, n)
        else:  # nothing but rounding: no size of its own to be measured by
            assert np.max(np.abs(grads[n])) <= AUTOGRAD * largest, n

    direction = {n: rng.standard_normal(p.shape) for n, p in params.items()}

    def along(h):
        up, down = (forward({n: p + s * h * direction[n] for n, p in params.items()}, *batch, config)[0] for s in (1, -1))
        return 0.7 * (up - down) / (2 * h)

    measured = (4 * along(5e-6) - along(1e-5)) / 3
    claimed = sum(np.sum(grads[n] * direction[n]) for n in params)
    size = np.sqrt(sum(np.sum(g * g) for g in grads.values()))
    assert abs(measured - claimed) <= 1e-7 * max(abs(measured), size)


def test_shards_change_nothing(rng):
    params, *batch = make(rng, TOY)
    loss, trace, back = forward(params, *batch, TOY)
    for shards in (2, 3, 8):
        loss2, trace2, back2 = forward(params, *batch, TOY, shards=shards)
        close(loss2, loss, "loss", 1e-14)
        for name in trace:
            close(trace2[name], trace[name], name, 1e-13)
        for (name, a), b in zip(back().items(), back2().values()):
            close(b, a, name)


def test_trace_names_every_stage(rng):
    params, *batch = make(rng, TOY)
    trace = forward(params, *batch, TOY)[1]
    b, l, p, d = 3, 5, 9, TOY.embed_dim
    shapes = {
        "image_features": (b, p, 10), "text_features": (b, l, 6), "v": (b, p, d), "t": (b, l, d), "v_bar": (b, d),
        "t_bar": (b, d), "loss_global": (), "logits": (b, b), "loss_image": (b,), "loss_text": (b,), "loss_fine": (),
        "similarity": (b, l, p), "minmax": (b, l, p), "sparse": (b, l, p), "weights": (b, l, p), "grouped": (b, l, d),
        "logits_vt": (b, l, l), "logits_tv": (b, l, l), "loss_vt": (b, l), "loss_tv": (b, l),
    }  # fmt: skip
    assert {name: np.shape(x) for name, x in trace.items()} == shapes


def test_encoders_agree_with_forward(rng):
    params, images, tokens, mask = make(rng, TOY)
    trace = forward(params, images, tokens, mask, TOY)[1]
    image, text = encode_images(params, images, TOY), encode_texts(params, tokens, mask, TOY)
    for name in ("v", "v_bar"):
        assert np.array_equal(image[name], trace[name])
    for name in ("t", "t_bar"):
        assert np.array_equal(text[name], trace[name])
    one_patch = encode_images(params, images[:, :, :4, :4], TOY)
    close(one_patch["segment"][:, 0], one_patch["v_bar"], "h_v and g_v on a single patch are the pooled embedding")


@pytest.mark.parametrize("name", ["default", "erf", "no text positions", "pool all", "no h_v", "larger picture, linear"])
def test_encoders_against_the_oracle(rng, name):
    """What evaluation reads and no loss does is under the model's options too: every patch through h_v."""
    config, shape = variant(name)
    params, images, tokens, mask = make(rng, config, **shape)
    p = {n: torch.tensor(x) for n, x in params.items()}
    f_v, ids, real = oracle.vision(p, torch.tensor(images), config), torch.tensor(tokens), torch.tensor(mask)
    f_t = oracle.text(p, ids, real, config)
    pooled = oracle.masked_mean(f_t, None if config.text_pool == "all" else real)
    wanted = {"v": oracle.linear(f_v, p["g_v.weight"], p["g_v.bias"]), "v_bar": oracle.image_head(p, f_v.mean(1), config),
              "segment": oracle.image_head(p, f_v, config), "t": oracle.linear(f_t, p["g_t.weight"], p["g_t.bias"]),
              "t_bar": oracle.linear(pooled, p["g_t.weight"], p["g_t.bias"])}
    for shards in (1, 2):
        ours = encode_images(params, images, config, shards) | encode_texts(params, tokens, mask, config, shards)
        assert ours.keys() == wanted.keys()
        for n, x in wanted.items():
            close(ours[n], x.numpy(), n)


def test_padding_is_inert_in_the_whole_model(rng):
    params, images, tokens, mask = make(rng, TOY)
    loss, _, back = forward(params, images, tokens, mask, TOY)
    other = np.where(mask, tokens, rng.integers(0, 13, tokens.shape))
    longer = np.pad(other, ((0, 0), (0, 2))), np.pad(mask, ((0, 0), (0, 2)))
    assert forward(params, images, other, mask, TOY)[0] == loss
    loss2, _, back2 = forward(params, images, *longer, TOY)
    close(loss2, loss, "loss", 1e-14)
    for (name, a), b in zip(back().items(), back2().values()):
        close(b, a, name, 1e-11)


def test_backends(rng, array):
    for name in ("default", "larger picture", "erf", "separate temperatures"):
        config, shape = variant(name)
        params, *batch = make(rng, config, **shape)
        loss, _, back = forward(params, *batch, config)
        ours = forward({n: array(p) for n, p in params.items()}, *(array(x) for x in batch), config)
        close(to_numpy(ours[0]), loss, "loss", 1e-13)
        for (n, g), theirs in zip(ours[2](0.7).items(), back(0.7).values()):
            close(to_numpy(g), theirs, n, 1e-11)


def test_float32_stays_float32(rng):
    config, _ = variant("larger picture")
    params, images, tokens, mask = make(rng, config)
    params = {n: p.astype(np.float32) for n, p in params.items()}
    loss, trace, back = forward(params, images, tokens, mask, config)  # float64 pictures are brought to the parameters' dtype
    assert {x.dtype for x in (loss, *trace.values(), *back(np.float64(0.7)).values())} == {np.dtype(np.float32)}


def test_nothing_is_written_where_a_caller_can_see(rng):
    params, *batch = make(rng, TOY)
    before = {n: p.copy() for n, p in params.items()}
    _, trace, back = forward(params, *batch, TOY)
    kept = {n: x.copy() for n, x in trace.items()}
    first, second = back(), back()
    assert all(np.array_equal(params[n], before[n]) for n in params)
    assert all(np.array_equal(trace[n], kept[n]) for n in trace)
    assert all(np.array_equal(first[n], second[n]) for n in first)


def test_presets_have_the_papers_sizes():
    sizes = {name: {n: int(np.prod(s)) for n, s in parameter_shapes(c).items()} for name, c in PRESETS.items()}
    count = {name: sum(each.values()) for name, each in sizes.items()}
    vision = {name: sum(size for n, size in each.items() if n.startswith("vision.")) for name, each in sizes.items()}
    assert 85e6 < vision["vit_b_16"] < 86e6  # ViT-B/16 without [CLS], head and key biases: 85.6 M
    assert 300e6 < vision["vit_l_14"] < 305e6
    assert 195e6 < count["vit_b_16"] < 199e6
    assert 3.5e6 < count["small"] - 2048 * 192 < 3.9e6
    assert [PRESETS[n].grid for n in ("vit_b_32", "vit_b_16", "vit_l_14")] == [(7, 7), (14, 14), (16, 16)]


# image, patch; width, depth, heads of the vision tower, of the text tower; vocabulary, tokens, D: the paper's, and ours below
TEXT = (768, 12, 12, 32000, 55, 512)
SIZES = {
    "vit_b_32": (224, 32, 768, 12, 12, *TEXT), "vit_b_16": (224, 16, 768, 12, 12, *TEXT),
    "vit_l_14": (224, 14, 1024, 24, 16, *TEXT),
    "tiny": (64, 8, 64, 2, 4, 64, 2, 4, 2048, 32, 64), "small": (64, 8, 192, 4, 3, 192, 4, 3, 2048, 32, 128),
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_every_size_of_every_preset(name):
    """Heads change no shape and no count: nothing else would tell. Whatever is no size is the default's."""
    names = ["image_size", "patch_size", *(f"{tower}_{n}" for tower in ("vision", "text") for n in ("width", "depth", "heads")),
             "vocab_size", "max_tokens", "embed_dim"]
    assert SIZES[name] == tuple(getattr(PRESETS[name], n) for n in names)
    assert PRESETS[name] == SPARCConfig(**dict(zip(names, SIZES[name]))) and PRESETS[name].mlp_ratio == 4


def test_initial_parameters(rng):
    params = init_params(PRESETS["tiny"], rng)
    assert {n: p.shape for n, p in params.items()} == parameter_shapes(PRESETS["tiny"])
    assert {p.dtype for p in params.values()} == {np.dtype(np.float32)}
    close(params["theta"], np.float32(np.log(1 / 0.07)), "theta", 1e-7)
    again = init_params(PRESETS["tiny"], np.random.default_rng(20240109))
    assert all(np.array_equal(params[n], again[n]) for n in params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((3, 3, 13, 12))}, "images: expected height and width that patch_size 4 divides, got 13 x 12"),
        ({"images": np.zeros((3, 12, 12, 3))}, r"images: expected \(B,3,H,W\) with B >= 1, got \(3, 12, 12, 3\)"),
        ({"images": np.zeros((3, 3, 12, 12), np.uint8)}, "images: expected normalised floats, got uint8"),
        ({"images": np.zeros((2, 3, 12, 12))}, r"tokens: expected \(B,L\) with B=2"),
        ({"tokens": np.full((3, 5), 13)}, r"tokens: expected ids in \[0, 13\), got 0 to 13"),
        ({"tokens": np.zeros((3, 5))}, "tokens: expected integers, got float64"),
        ({"tokens": np.zeros((3, 9), int)}, "at most max_tokens 8 a caption, got 9"),
        ({"mask": np.ones((3, 4), bool)}, r"mask: expected bool \(3, 5\), got bool \(3, 4\)"),
        ({"mask": np.ones((3, 5))}, r"mask: expected bool \(3, 5\), got float64"),
    ],
)
def test_wrong_inputs_are_named(rng, change, message):
    params, images, tokens, mask = make(rng, TOY)
    given = {"images": images, "tokens": tokens, "mask": mask} | change
    with pytest.raises(ValueError, match=message):
        forward(params, **given, config=TOY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gelu": "relu"}, "gelu: expected one of tanh, erf; got 'relu'"),
        ({"vision_heads": 3}, "vision_heads: expected a divisor of vision_width 10, got 3"),
        ({"patch_size": 5}, "patch_size: expected a divisor of image_size 12, got 5"),
        ({"vocab_size": 0}, "vocab_size: expected a positive number, got 0"),
        ({"lambda_g": 0.0, "lambda_f": 0.0}, "not both 0"),
        ({"sigma": 2.0}, r"sigma: expected a threshold in \[0, 1\]"),
        ({"temperature_init": 0.0}, "expected positive numbers"),
        ({"temperature_init": float("nan")}, "expected positive numbers"),
        ({"layer_norm_eps": float("inf")}, "expected positive numbers"),
        ({"lambda_f": float("nan")}, "lambda_g, lambda_f: expected >= 0"),
        ({"lambda_g": float("inf")}, "lambda_g, lambda_f: expected >= 0"),
    ],
)
def test_wrong_configurations_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TOY, **change)


def test_parameters_of_another_configuration_are_refused(rng):
    params, *batch = make(rng, TOY)
    with pytest.raises(ValueError, match=r"differs in h_v\.bias, h_v\.weight"):
        forward(params, *batch, replace(TOY, h_v="none"))


def test_import_is_light():
    """NumPy and array-api-compat, and none of the heavy ones; in a process of its own."""
    code = "import sys, sparc_ref; print(*sorted(m.split('.')[0] for m in sys.modules))"
    loaded = set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())
    heavy = {"torch", "cupy", "matplotlib", "PIL", "tyro", "tqdm", "rich", "safetensors", "sentencepiece", "scipy"}
    assert "numpy" in loaded and not loaded & heavy


def test_forward_keeps_no_more_than_back_needs(rng):
    """What stays allocated after forward, counted in rows of one width: a closure that names one array too many shows here."""
    import tracemalloc

    config = replace(TOY, vision_width=48, vision_heads=2, vision_depth=3, mlp_ratio=4, text_width=6, text_depth=0, embed_dim=4)
    params, images, tokens, mask = make(rng, config, size=(128, 128))
    forward(params, images, tokens, mask, config)
    tracemalloc.start()
    try:
        kept = forward(params, images, tokens, mask, config)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    patches = 32 * 32
    row = 3 * patches * 48 * 8  # bytes of one (B,P,C)
    scores = 2 * patches / 48  # attention weights, in widths
    # a block: two norms' x_hat and value, qkv (3) and the scaled q, heads' sum, four of GELU's slope, four of its value;
    # beside it f_v twice and the patches
    needed = 3 * (4 + 4 + 1 + 8 + scores) + 2 + 1
    assert kept[0].ndim == 0
    assert size < (needed + 2) * row
