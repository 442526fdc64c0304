"""The whole model: its configuration, its parameters, forward -> loss and trace, back -> every gradient.

Parameters are one flat dict under the names of a torch state_dict; a linear layer's weight is (out,in).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
from array_api_compat import array_namespace

from sparc_ref import losses, ops
from sparc_ref.alignment import CHOICES, check_finite, check_options
from sparc_ref.backend import Array, check_arrays
from sparc_ref.encoders import in_shards, part, text_tower, vision_tower


@dataclass(frozen=True)
class SPARCConfig:
    """Sizes and decisions.  Where the paper is silent or contradicts itself, the comment says what the default rests on."""

    image_size: int = 224           # pixels; positions are learned for this size and resized for others
    patch_size: int = 16            # pixels along a patch's side
    vision_width: int = 768         # of the vision tower
    vision_depth: int = 12          # its blocks
    vision_heads: int = 12          # heads of its attention
    text_width: int = 768           # of the text tower
    text_depth: int = 12            # its blocks; 0: a token's embedding does not depend on its neighbours
    text_heads: int = 12            # heads of its attention
    vocab_size: int = 32000         # tokens that the model knows; a tokenizer that is learned has so many pieces at most
    max_tokens: int = 55            # of a caption, the end token included; what is longer is cut
    embed_dim: int = 512            # D, the joint width
    mlp_ratio: int = 4              # hidden width of an MLP, as a multiple of its tower's
    gelu: str = "tanh"              # "tanh": JAX's default, the authors' framework | "erf"
    layer_norm_eps: float = 1e-6    # added to the variance in every LayerNorm
    position_resize: str = "bicubic"  # "bicubic" | "linear", when the image is not image_size
    text_positions: str = "learned"   # "learned" | "none": a caption is a bag of tokens
    text_pool: str = "masked"       # "masked": mean over real tokens | "all": Listing 1, padding included
    h_v: str = "dense_gelu"         # "dense_gelu": section 2's h_v, C -> C on the pooled vector | "none": Listing 1
    temperature: str = "shared"     # "shared": one theta = log(1/tau) for both losses | "separate"
    temperature_init: float = 0.07  # tau at the start
    reduction: str = "sample"       # "sample": eq. 6, mean over captions | "token": Listing 1, mean over all tokens
    sigma: float | None = None      # sparsity threshold, eq. 3; None: 1/P
    similarity: str = "dot"         # "dot": the inner product | "cosine"; this and the next four are align_patches' keywords
    align: str = "minmax"           # "minmax": eqs. 2-4 | "no_threshold" | "softmax": the paper's Table 8
    threshold_on: str = "minmax"    # "minmax": eq. 3 | "weights": after eq. 4, then to sum 1 again
    flat: str = "uniform"           # a token to which all patches are alike: "uniform" weights | "zero" | "nan": 0/0
    ties: str = "share"             # a tied minimum or maximum: its gradient is "share"d evenly | goes to the "first"
    lambda_g: float = 0.5           # weight of the global loss, eq. 7; appendix D.4
    lambda_f: float = 1.0           # of the fine-grained loss, eq. 7; appendix D.4 sweeps 0.5, 1, 5, 10; 0 leaves that loss out

    def __post_init__(self):
        choices = CHOICES | {
            "gelu": ("tanh", "erf"),
            "position_resize": ("bicubic", "linear"),
            "text_positions": ("learned", "none"),
            "text_pool": ("masked", "all"),
            "h_v": ("dense_gelu", "none"),
            "temperature": ("shared", "separate"),
            "reduction": losses.REDUCTIONS,
        }
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in choices and value not in choices[field.name]:
                raise ValueError(f"{field.name}: expected one of {', '.join(choices[field.name])}; got {value!r}")
            if field.type is int and value < (0 if field.name.endswith("depth") else 1):
                raise ValueError(f"{field.name}: expected a positive number, got {value}")
        for tower in ("vision", "text"):
            width, heads = getattr(self, f"{tower}_width"), getattr(self, f"{tower}_heads")
            if width % heads:
                raise ValueError(f"{tower}_heads: expected a divisor of {tower}_width {width}, got {heads}")
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size: expected a divisor of image_size {self.image_size}, got {self.patch_size}")
        if not (0 < self.temperature_init < math.inf and 0 < self.layer_norm_eps < math.inf):
            raise ValueError("temperature_init and layer_norm_eps: expected positive numbers")
        if not (0 <= self.lambda_g < math.inf and 0 <= self.lambda_f < math.inf and self.lambda_g + self.lambda_f > 0):
            raise ValueError(f"lambda_g, lambda_f: expected >= 0, not both 0; got {self.lambda_g}, {self.lambda_f}")
        if self.sigma is not None and not 0 <= self.sigma <= 1:
            raise ValueError(f"sigma: expected a threshold in [0, 1] or None for 1/P, got {self.sigma}")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches at image_size."""
        return (self.image_size // self.patch_size,) * 2

    @property
    def align_options(self) -> dict:
        """align_patches' keywords."""
        return {name: getattr(self, name) for name in ("sigma", *CHOICES)}


_PAPER = SPARCConfig()
_SMALL = replace(_PAPER, image_size=64, patch_size=8, vocab_size=2048, max_tokens=32)
PRESETS = {
    "tiny": replace(  # seconds on a CPU
        _SMALL, vision_width=64, vision_depth=2, vision_heads=4, text_width=64, text_depth=2, text_heads=4, embed_dim=64
    ),
    "small": replace(  # 2,000 updates take about an hour on a CPU; 3.7 M parameters besides the vocabulary
        _SMALL, vision_width=192, vision_depth=4, vision_heads=3, text_width=192, text_depth=4, text_heads=3, embed_dim=128
    ),
    "vit_b_32": replace(_PAPER, patch_size=32),
    "vit_b_16": _PAPER,
    "vit_l_14": replace(_PAPER, patch_size=14, vision_width=1024, vision_depth=24, vision_heads=16),
}


def parameter_shapes(config: SPARCConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter's name and shape, in forward order."""
    c = config

    def blocks(tower, width, depth):
        hidden = c.mlp_ratio * width
        block = {
            "norm1.weight": (width,), "norm1.bias": (width,),
            "attn.query.weight": (width, width), "attn.query.bias": (width,),
            "attn.key.weight": (width, width),
            "attn.value.weight": (width, width), "attn.value.bias": (width,),
            "attn.out.weight": (width, width), "attn.out.bias": (width,),
            "norm2.weight": (width,), "norm2.bias": (width,),
            "mlp.up.weight": (hidden, width), "mlp.up.bias": (hidden,),
            "mlp.down.weight": (width, hidden), "mlp.down.bias": (width,),
        }  # fmt: skip
        shapes = {f"{tower}.blocks.{i}.{name}": shape for i in range(depth) for name, shape in block.items()}
        return shapes | {f"{tower}.norm.weight": (width,), f"{tower}.norm.bias": (width,)}

    patches = c.grid[0] * c.grid[1]
    shapes = {
        "vision.patch.weight": (c.vision_width, 3 * c.patch_size**2),
        "vision.patch.bias": (c.vision_width,),
        "vision.positions": (patches, c.vision_width),
        **blocks("vision", c.vision_width, c.vision_depth),
        "text.embedding.weight": (c.vocab_size, c.text_width),
    }
    if c.text_positions == "learned":
        shapes["text.positions"] = (c.max_tokens, c.text_width)
    shapes |= blocks("text", c.text_width, c.text_depth)
    if c.h_v == "dense_gelu":
        shapes |= {"h_v.weight": (c.vision_width, c.vision_width), "h_v.bias": (c.vision_width,)}
    shapes |= {"g_v.weight": (c.embed_dim, c.vision_width), "g_v.bias": (c.embed_dim,)}
    shapes |= {"g_t.weight": (c.embed_dim, c.text_width), "g_t.bias": (c.embed_dim,)}
    return shapes | {"theta": ()} | ({"theta_fine": ()} if c.temperature == "separate" else {})


def init_params(config: SPARCConfig, rng: np.random.Generator, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Draw the initial parameters.  The paper gives no scheme; this is the usual ViT one: Glorot-uniform matrices, zero
    biases, normal(0, 0.02) positions and embeddings, theta = log(1/0.07)."""
    params = {}
    for name, shape in parameter_shapes(config).items():
        if name.startswith("theta"):
            value = np.full(shape, math.log(1 / config.temperature_init))
        elif name.endswith("positions") or "embedding" in name:
            value = rng.normal(0, 0.02, shape)
        elif "norm" in name:
            value = np.ones(shape) if name.endswith("weight") else np.zeros(shape)
        elif name.endswith("bias"):
            value = np.zeros(shape)
        else:
            value = rng.uniform(-1, 1, shape) * math.sqrt(6 / sum(shape))
        params[name] = np.asarray(value, dtype)
    return params


def forward(
    params: dict[str, Array], images: Array, tokens: Array, mask: Array, config: SPARCConfig, shards: int = 1
) -> tuple[Array, dict[str, Array], Callable]:
    """Eq. 7: L = lambda_g L_g + lambda_f L_f, and everything on the way to it.

    images (B,3,H,W) float, normalised; tokens (B,L) int; mask (B,L) bool, true = real token.  Padding may hold any id.
    Returns loss (), trace, back; back(dloss) -> one gradient for every parameter, under the same names.  ValueError names an
    input that does not fit; ArithmeticError where the loss or a gradient is not finite (but for flat="nan").
    trace: image_features f_v (B,P,C), text_features f_t (B,L,C), v (B,P,D), t (B,L,D), v_bar, t_bar (B,D), loss_global,
    loss_fine and both losses' own stages.  shards > 1 runs the towers on that many parts of the batch, in threads.
    """
    check_arrays(images=images, tokens=tokens)
    images, tokens = check_inputs(params, images, tokens, mask, config)
    theta = params["theta"]
    theta_fine = params.get("theta_fine", theta)

    towers = in_shards(lambda *batch: _pair(params, config, *batch), shards, images, tokens, mask)
    (f_v, v, v_bar, f_t, t, t_bar), back_towers = towers
    loss_g, trace_g, back_global = losses.global_loss(v_bar, t_bar, theta)
    loss = config.lambda_g * loss_g
    trace = {"image_features": f_v, "text_features": f_t, "v": v, "t": t, "v_bar": v_bar, "t_bar": t_bar}
    trace |= {"loss_global": loss_g, **trace_g}
    if config.lambda_f:
        loss_f, trace_f, back_fine = losses.fine_grained_loss(
            v, t, mask, theta_fine, reduction=config.reduction, **config.align_options
        )
        loss = loss + config.lambda_f * loss_f
        trace |= {"loss_fine": loss_f, **trace_f}

    def back(dloss=1.0):
        dloss = float(dloss)
        xp = array_namespace(v)
        dv_bar, dt_bar, dtheta = back_global(config.lambda_g * dloss)
        dv, dt, dtheta_fine = xp.zeros_like(v), xp.zeros_like(t), xp.zeros_like(theta)
        if config.lambda_f:
            dv, dt, dtheta_fine = back_fine(config.lambda_f * dloss)
        thetas = {"theta": dtheta, "theta_fine": dtheta_fine} if "theta_fine" in params else {"theta": dtheta + dtheta_fine}
        g = back_towers(dv, dv_bar, dt, dt_bar) | thetas
        if not bool(xp.all(xp.stack([xp.all(xp.isfinite(x)) for x in g.values()]))) and bool(xp.isfinite(loss)):
            for name, x in g.items():
                check_finite(f"gradient of {name}", x)
        return {name: g[name] for name in params}

    return loss, trace, back


def forward_with(
    objective: Callable, params: dict[str, Array], images: Array, tokens: Array, mask: Array, config: SPARCConfig,
    shards: int = 1,
) -> tuple[Array, dict[str, Array], Callable]:
    """forward() under another loss: objective(params, v, t, mask, v_bar, t_bar) -> loss, parts, back, as in objectives/.

    params are the model's and the objective's own.  trace has the embeddings and the objective's parts; a parameter that the
    objective does not reach gets a gradient of zeros.
    """
    check_arrays(images=images, tokens=tokens)
    own = own_params(params, config)
    images, tokens = check_inputs(own, images, tokens, mask, config)
    towers = in_shards(lambda *batch: _pair(own, config, *batch), shards, images, tokens, mask)
    (f_v, v, v_bar, f_t, t, t_bar), back_towers = towers
    loss, parts, back_loss = objective(params, v, t, mask, v_bar, t_bar)
    trace = {"image_features": f_v, "text_features": f_t, "v": v, "t": t, "v_bar": v_bar, "t_bar": t_bar}

    def back(dloss=1.0):
        xp = array_namespace(v)
        g = back_loss(float(dloss))
        g |= back_towers(*(g.pop(name) for name in ("v", "v_bar", "t", "t_bar")))
        for name, x in g.items():
            check_finite(f"gradient of {name}", x)
        return {name: g[name] if name in g else xp.zeros_like(p) for name, p in params.items()}

    return loss, trace | parts, back


def own_params(params: dict[str, Array], config: SPARCConfig) -> dict[str, Array]:
    """The model's parameters among those of a run, which may hold an objective's too."""
    return {name: params[name] for name in parameter_shapes(config) if name in params}


def encode_images(params: dict[str, Array], images: Array, config: SPARCConfig, shards: int = 1) -> dict[str, Array]:
    """images (B,3,H,W) -> {"v": patch embeddings (B,P,D), "v_bar": (B,D), "segment": (B,P,D)}

    "segment" pushes every patch through h_v, then g_v, as zero-shot segmentation does (appendix D.7).
    """
    check_arrays(images=images)
    images, _ = check_inputs(params, images, None, None, config)
    (f_v, v, v_bar), _ = in_shards(lambda x: _image(params, x, config), shards, images)
    check_finite("v", v, images=images)
    return {"v": v, "v_bar": v_bar, "segment": _image_head(params, f_v, config)[0]}


def encode_texts(
    params: dict[str, Array], tokens: Array, mask: Array, config: SPARCConfig, shards: int = 1
) -> dict[str, Array]:
    """tokens (B,L) int, mask (B,L) bool -> {"t": token embeddings (B,L,D), "t_bar": (B,D)}"""
    check_arrays(tokens=tokens)
    _, tokens = check_inputs(params, None, tokens, mask, config)
    (_, t, t_bar), _ = in_shards(lambda x, m: _text(params, x, m, config), shards, tokens, mask)
    return {"t": t, "t_bar": t_bar}


def _pair(params, config, images, tokens, mask):
    """Both towers, one after the other: what one thread does for its part of the batch."""
    image, back_image = _image(params, images, config)
    text, back_text = _text(params, tokens, mask, config)

    def back(dv, dv_bar, dt, dt_bar):
        return back_image(dv, dv_bar) | back_text(dt, dt_bar)

    return (*image, *text), back


def _image(params, images, config):
    """images -> f_v, v = g_v(f_v), v_bar = g_v(h_v(mean f_v)); back(dv, dv_bar) -> gradients"""
    f_v, back_tower = vision_tower(
        part(params, "vision."), images, patch=config.patch_size, grid=config.grid, heads=config.vision_heads,
        gelu=config.gelu, eps=config.layer_norm_eps, resize=config.position_resize,
    )  # fmt: skip
    v, back_v = ops.linear(f_v, params["g_v.weight"], params["g_v.bias"])
    pooled, back_pool = ops.masked_mean(f_v)
    v_bar, back_head = _image_head(params, pooled, config)

    def back(dv, dv_bar):
        dpooled, g = back_head(dv_bar)
        df_v, dweight, dbias = back_v(dv)
        df_v += back_pool(dpooled)
        g["g_v.weight"] = g["g_v.weight"] + dweight
        g["g_v.bias"] = g["g_v.bias"] + dbias
        return g | {f"vision.{name}": value for name, value in back_tower(df_v).items()}

    return (f_v, v, v_bar), back


def _image_head(params, x, config):
    """g_v(h_v(x)).      x (...,C) -> (...,D); back(dy) -> dx, gradients"""
    back_h = None
    if config.h_v == "dense_gelu":
        x, back_h = ops.linear(x, params["h_v.weight"], params["h_v.bias"])
        x, back_gelu = ops.gelu(x, config.gelu)
    y, back_g = ops.linear(x, params["g_v.weight"], params["g_v.bias"])

    def back(dy):
        g = {}
        dx, g["g_v.weight"], g["g_v.bias"] = back_g(dy)
        if back_h:
            dx, g["h_v.weight"], g["h_v.bias"] = back_h(back_gelu(dx))
        return dx, g

    return y, back


def _text(params, tokens, mask, config):
    """tokens -> f_t, t = g_t(f_t), t_bar = g_t(mean of f_t over real tokens); back(dt, dt_bar) -> gradients"""
    f_t, back_tower = text_tower(
        part(params, "text."), tokens, mask, heads=config.text_heads, gelu=config.gelu, eps=config.layer_norm_eps
    )
    t, back_t = ops.linear(f_t, params["g_t.weight"], params["g_t.bias"])
    pooled, back_pool = ops.masked_mean(f_t, mask if config.text_pool == "masked" else None)
    t_bar, back_bar = ops.linear(pooled, params["g_t.weight"], params["g_t.bias"])

    def back(dt, dt_bar):
        dpooled, dweight_bar, dbias_bar = back_bar(dt_bar)
        df_t, dweight, dbias = back_t(dt)
        df_t += back_pool(dpooled)
        g = {"g_t.weight": dweight + dweight_bar, "g_t.bias": dbias + dbias_bar}
        return g | {f"text.{name}": value for name, value in back_tower(df_t).items()}

    return (f_t, t, t_bar), back


def check_inputs(params, images, tokens, mask, config):
    """Images in the parameters' dtype, tokens with 0 at padding; ValueError for anything that does not fit the config."""
    check_options(**{name: getattr(config, name) for name in CHOICES})
    missing = parameter_shapes(config).keys() ^ params.keys()
    if missing:
        raise ValueError(f"params: expected the names of parameter_shapes(config); differs in {', '.join(sorted(missing)[:5])}")
    given = {"images": images, "tokens": tokens, **({} if tokens is None else {"mask": mask})}
    check_arrays(**{f"params[{name!r}]": p for name, p in params.items()},
                 **{name: x for name, x in given.items() if x is not None or name == "mask"})
    for name, shape in parameter_shapes(config).items():
        if tuple(params[name].shape) != shape:
            raise ValueError(f"params[{name!r}]: expected {shape}, as parameter_shapes(config) says, "
                             f"got {tuple(params[name].shape)}")
    if images is not None:
        xp = array_namespace(images)
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise ValueError(f"images: expected (B,3,H,W) with B >= 1, got {tuple(images.shape)}")
        if not xp.isdtype(images.dtype, "real floating"):
            raise ValueError(f"images: expected normalised floats, got {images.dtype}; data.to_images turns bytes into them")
        if images.shape[2] % config.patch_size or images.shape[3] % config.patch_size:
            raise ValueError(
                f"images: expected height and width that patch_size {config.patch_size} divides, "
                f"got {images.shape[2]} x {images.shape[3]}"
            )
        images = xp.astype(images, params["theta"].dtype, copy=False)
    if tokens is not None:
        xp = array_namespace(tokens)
        if tokens.ndim != 2 or 0 in tokens.shape or (images is not None and tokens.shape[0] != images.shape[0]):
            wanted = "(B,L)" if images is None else f"(B,L) with B={images.shape[0]}, one caption an image"
            raise ValueError(f"tokens: expected {wanted}, got {tuple(tokens.shape)}")
        if tokens.shape[1] > config.max_tokens:
            raise ValueError(f"tokens: expected at most max_tokens {config.max_tokens} a caption, got {tokens.shape[1]}")
        if not xp.isdtype(tokens.dtype, "integral"):
            raise ValueError(f"tokens: expected integers, got {tokens.dtype}")
        if tuple(mask.shape) != tuple(tokens.shape) or mask.dtype != xp.bool:
            raise ValueError(f"mask: expected bool {tuple(tokens.shape)}, got {mask.dtype} {tuple(mask.shape)}")
        tokens = xp.where(mask, tokens, xp.zeros_like(tokens))
        lowest, highest = int(xp.min(tokens)), int(xp.max(tokens))
        if lowest < 0 or highest >= config.vocab_size:
            raise ValueError(f"tokens: expected ids in [0, {config.vocab_size}), got {lowest} to {highest}")
    return images, tokens
