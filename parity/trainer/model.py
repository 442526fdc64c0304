"""SPARC in torch, as a full-scale trainer runs it: fused attention, built-in norms, compiled, checkpointed, under autocast.

B batch, L tokens, P patches, C tower width, D joint width.  Shares no line with sparc_ref: a config is any object with
SPARCConfig's attributes.  The state_dict's names, shapes and order are those of the reference's flat dict of parameters, so
that weights move both ways with no table between them.  (bench/torch_model.py is the yardstick of speed: eager, no options.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from sparc_ref import SPARCConfig

ORDER = (  # in which data meets them; torch would put a module's own parameters before those of its parts
    "vision.patch", "vision.positions", "vision.blocks", "vision.norm",
    "text.embedding", "text.positions", "text.blocks", "text.norm", "h_v", "g_v", "g_t", "theta", "theta_fine",
    "theta_filip", "theta_local", "theta_attention", "theta_words", "theta_cross", "pacl", "theta_pool", "mgca", "flair",
    "logit_bias",
)  # fmt: skip
STARTS = {"theta_filip": 1 / 0.07, "theta_local": 10.0, "theta_attention": 4.0, "theta_words": 5.0, "theta_cross": 10.0}


class SPARC(nn.Module):
    """Both towers and both adapters.  The losses, which share theta = log(1/tau) with it, are in parity.trainer.loss.

    attention  "sdpa": torch's fused kernels | "plain": scores, softmax, product, each in memory
    fused_qkv  queries, keys and values in one product | three
    checkpoint keep each block's input alone and compute the block again in backward
    objective  settings with ObjectiveConfig's attributes, whose own parameters are then the model's; None: SPARC's
    stream     "bfloat16": what runs through the blocks is bfloat16, parameters are rounded to it where they are used, norms,
               softmax and means are float32 inside; not under autocast | None: as parameters and autocast have it
    """

    def __init__(
        self, config: SPARCConfig, *, attention: str = "sdpa", fused_qkv: bool = True, checkpoint: bool = False,
        objective: Any = None, stream: str | None = None,
    ):
        super().__init__()
        if attention not in ("sdpa", "plain"):
            raise ValueError(f"attention: expected sdpa or plain; got {attention!r}")
        c = self.config = config
        if stream not in (None, "bfloat16"):
            raise ValueError(f"stream: expected bfloat16 or None; got {stream!r}")
        how = {"gelu": c.gelu, "eps": c.layer_norm_eps, "attention": attention, "fused": fused_qkv, "checkpoint": checkpoint,
               "stream": None if stream is None else torch.bfloat16}
        self.vision = VisionTower(c, how)
        self.text = TextTower(c, how)
        self.h_v = Linear(c.vision_width, c.vision_width) if c.h_v == "dense_gelu" else None
        self.g_v = Linear(c.vision_width, c.embed_dim)
        self.g_t = Linear(c.text_width, c.embed_dim)
        self.theta = nn.Parameter(torch.tensor(math.log(1 / c.temperature_init)))
        self.theta_fine = nn.Parameter(self.theta.detach().clone()) if c.temperature == "separate" else None
        self.objective = objective
        if objective is not None:
            add_own(self, objective, c.embed_dim)
        self.register_state_dict_post_hook(_in_forward_order)

    def forward(self, images: Tensor, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """images (B,3,H,W) floats, tokens (B,L) int, mask (B,L) bool, true = real token -> what follows, by the trace's names.

        image_features f_v (B,P,C), text_features f_t (B,L,C), v (B,P,D), t (B,L,D), v_bar, t_bar (B,D).
        Padding may hold any id; H and W are any that patch_size divides.  Raises ValueError on wrong shapes.  That the ids of
        real tokens are below vocab_size is not looked at: on a GPU the look would stop it.
        """
        return self.encode_images(images) | self.encode_texts(tokens, mask)

    def encode_images(self, images: Tensor) -> dict[str, Tensor]:
        """images (B,3,H,W) -> image_features (B,P,C), v (B,P,D), v_bar (B,D)"""
        f_v = self.vision(images)
        pooled = f_v.mean(1, dtype=inside(f_v)).to(f_v.dtype)
        return {"image_features": f_v, "v": self.g_v(f_v), "v_bar": self.image_head(pooled)}

    def image_head(self, x: Tensor) -> Tensor:
        """g_v(h_v(x)), of the pooled picture, and in zero-shot segmentation of each patch.      x (...,C) -> (...,D)"""
        if self.h_v is not None:
            x = gelu(self.h_v(x), self.config.gelu)
        return self.g_v(x)

    def encode_texts(self, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """tokens (B,L) int, mask (B,L) bool -> text_features (B,L,C), t (B,L,D), t_bar (B,D)"""
        f_t = self.text(tokens, mask)
        if self.config.text_pool == "masked":
            real = mask[..., None]
            # an empty caption pools to 0
            pooled = torch.where(real, f_t, 0).sum(1, dtype=inside(f_t)) / real.sum(1).clamp(min=1)
        else:
            pooled = f_t.mean(1, dtype=inside(f_t))
        return {"text_features": f_t, "t": self.g_t(f_t), "t_bar": self.g_t(pooled.to(f_t.dtype))}


def add_own(model: SPARC, o: Any, width: int) -> None:
    """The parameters that an objective adds (parity.trainer.objectives), under the reference's names."""
    scales = {"clip_filip": ("theta_filip",), "mgca": ("theta_cross",) * bool(o.mgca_lambda_cta),
              "gloria": ("theta_local", *("theta_attention", "theta_words") * (o.gloria_learn == "all"))}
    starts = {name: STARTS[name] for name in scales.get(o.objective, ())}
    if o.objective == "pacl":
        if o.pacl_embedder == "residual":
            model.pacl = nn.ModuleDict({"up": nn.Linear(width, width), "down": nn.Linear(width, width)})
        starts |= {"theta_pool": max(o.pacl_weight_scale, 1.0)} if o.pacl_learn_scale else {}
    if o.objective == "mgca":
        inside = o.mgca_width
        model.mgca = nn.ModuleDict({side: nn.ModuleDict({
            "query": nn.Linear(width, inside), "key": nn.Linear(width, inside, bias=False), "value": nn.Linear(width, inside),
            "out": nn.Linear(inside, width)}) for side in ("word", "patch") if o.mgca_attention == "mha" and o.mgca_lambda_cta})
        if o.mgca_lambda_cpa:
            model.mgca.register_parameter("prototypes", nn.Parameter(torch.zeros(o.mgca_prototypes, width)))
    if o.objective == "flair":
        model.flair = nn.ModuleDict({"query": nn.Linear(width, width), "key": nn.Linear(width, width, bias=False),
                                     "value": nn.Linear(width, width, bias=False), "out": nn.Linear(width, width)})
    if o.objective in ("siglip", "flair"):
        model.register_parameter("logit_bias", nn.Parameter(torch.tensor(-10.0)))
    for name, start in starts.items():
        model.register_parameter(name, nn.Parameter(torch.tensor(math.log(start))))


class VisionTower(nn.Module):
    """f_v: a ViT without [CLS].      images (B,3,H,W) -> (B,P,C)"""

    def __init__(self, c: SPARCConfig, how: dict):
        super().__init__()
        self.size, self.grid, self.resize = c.patch_size, c.image_size // c.patch_size, c.position_resize
        self.stream = how["stream"]
        self.patch = Linear(3 * c.patch_size**2, c.vision_width)
        self.positions = nn.Parameter(torch.zeros(self.grid**2, c.vision_width))
        self.blocks = nn.ModuleList(Block(c.vision_width, c.vision_heads, c.mlp_ratio, how) for _ in range(c.vision_depth))
        self.norm = LayerNorm(c.vision_width, c.layer_norm_eps)

    def forward(self, images: Tensor) -> Tensor:
        p = self.size
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % p or images.shape[3] % p:
            raise ValueError(f"images: expected (B,3,H,W) with H and W that {p} divides, got {tuple(images.shape)}")
        batch, rows, columns = images.shape[0], images.shape[2] // p, images.shape[3] // p
        x = images.reshape(batch, 3, rows, p, columns, p).permute(0, 2, 4, 1, 3, 5)
        x = entered(x.reshape(batch, rows * columns, 3 * p * p), self.stream)
        x = self.patch(x)                                 # a product, not a convolution: no TF32 of cuDNN's
        x = entered(x + self.positions_for(rows, columns), self.stream)
        for block in self.blocks:
            x = block(x, None)
        return self.norm(x)

    def positions_for(self, rows: int, columns: int) -> Tensor:
        """The learned positions, resized where the picture is not image_size.      -> (rows*columns,C)"""
        if (rows, columns) == (self.grid, self.grid):
            return self.positions
        mode = "bicubic" if self.resize == "bicubic" else "bilinear"
        maps = self.positions.T.reshape(1, -1, self.grid, self.grid)
        return F.interpolate(maps, (rows, columns), mode=mode, align_corners=False)[0].flatten(1).T


class TextTower(nn.Module):
    """f_t: a bidirectional transformer; padding is no key for anyone.      tokens (B,L), mask (B,L) -> (B,L,C)"""

    def __init__(self, c: SPARCConfig, how: dict):
        super().__init__()
        self.longest = c.max_tokens
        self.stream = how["stream"]
        self.embedding = nn.Embedding(c.vocab_size, c.text_width)
        self.positions = nn.Parameter(torch.zeros(c.max_tokens, c.text_width)) if c.text_positions == "learned" else None
        self.blocks = nn.ModuleList(Block(c.text_width, c.text_heads, c.mlp_ratio, how) for _ in range(c.text_depth))
        self.norm = LayerNorm(c.text_width, c.layer_norm_eps)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        if tokens.ndim != 2 or not 0 < tokens.shape[1] <= self.longest:
            raise ValueError(f"tokens: expected (B,L) with L from 1 to {self.longest}, got {tuple(tokens.shape)}")
        if mask.shape != tokens.shape or mask.dtype != torch.bool:
            raise ValueError(f"mask: expected bool {tuple(tokens.shape)}, got {mask.dtype} {tuple(mask.shape)}")
        x = self.embedding(torch.where(mask, tokens, 0))
        if self.positions is not None:
            x = x + self.positions[: tokens.shape[1]]
        x = entered(x, self.stream)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).      x (B,L,C), mask (B,L) or None -> (B,L,C)"""

    def __init__(self, width: int, heads: int, ratio: int, how: dict):
        super().__init__()
        self.norm1 = LayerNorm(width, how["eps"])
        self.attn = Attention(width, heads, how)
        self.norm2 = LayerNorm(width, how["eps"])
        self.mlp = MLP(width, ratio * width, how["gelu"])
        self.checkpoint = how["checkpoint"]

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.checkpoint and torch.is_grad_enabled():
            return checkpoint(self.compute, x, mask, use_reentrant=False)
        return self.compute(x, mask)

    def compute(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """softmax(q k' / sqrt(C/heads)) v in each head, with padding masked as keys.      x (B,L,C), mask (B,L) or None -> (B,L,C)

    Keys have no bias: its gradient is exactly 0.
    """

    def __init__(self, width: int, heads: int, how: dict):
        super().__init__()
        self.heads, self.fused, self.kind = heads, how["fused"], how["attention"]
        self.query = Linear(width, width)
        self.key = Linear(width, width, bias=False)
        self.value = Linear(width, width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (y.view(batch, length, self.heads, -1).transpose(1, 2) for y in self.qkv(x))  # (B,heads,L,C/heads)
        keys = real = None
        if mask is not None:
            real = mask.any(1)[:, None, None, None]
            # an empty caption attends to everything and is thrown away below: a row of nothing but masked keys is NaN in
            # some kernels of some versions, in the gradient if not in the value
            keys = mask[:, None, None, :] | ~real         # (B,1,1,L)
        if self.kind == "sdpa":
            o = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        else:
            s = q * q.shape[-1] ** -0.5 @ k.mT            # (B,heads,L,L)
            s = s if keys is None else torch.where(keys, s, -torch.inf)
            o = torch.softmax(s, -1, dtype=inside(s)).to(v.dtype) @ v
        if real is not None:
            o = torch.where(real, o, 0)
        return self.out(o.transpose(1, 2).reshape(batch, length, width))

    def qkv(self, x: Tensor) -> Iterator[Tensor] | tuple[Tensor, ...]:
        """x (B,L,C) -> queries, keys, values, each (B,L,C)"""
        if not self.fused:
            return self.query(x), self.key(x), self.value(x)
        weight = torch.cat([used(part.weight, x) for part in (self.query, self.key, self.value)])
        bias = torch.cat([used(b, x) for b in (self.query.bias, torch.zeros_like(self.query.bias), self.value.bias)])
        return F.linear(x, weight, bias).chunk(3, -1)


class MLP(nn.Module):
    """gelu(x up' + b) down' + b.      x (B,L,C) -> (B,L,C)"""

    def __init__(self, width: int, hidden: int, kind: str):
        super().__init__()
        self.kind = kind
        self.up = Linear(width, hidden)
        self.down = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(gelu(self.up(x), self.kind))


class Linear(nn.Linear):
    """In the dtype of what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, used(self.weight, x), None if self.bias is None else used(self.bias, x))


class LayerNorm(nn.LayerNorm):
    """In at least float32, whatever it is given, whose dtype comes out."""

    def forward(self, x: Tensor) -> Tensor:
        wide = inside(x)
        y = F.layer_norm(x.to(wide), self.normalized_shape, self.weight.to(wide), self.bias.to(wide), self.eps)
        return y if autocast(x) else y.to(x.dtype)


def used(p: Tensor, x: Tensor) -> Tensor:
    """A parameter in the dtype of what it meets, unless autocast sees to that."""
    return p if autocast(x) else p.to(x.dtype)


def autocast(x: Tensor) -> bool:
    """Whether torch.autocast is on where x is; a tensor without contents has none."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def inside(x: Tensor) -> torch.dtype:
    """In which sums over x are taken: at least float32."""
    return torch.promote_types(x.dtype, torch.float32)


def entered(x: Tensor, stream: torch.dtype | None) -> Tensor:
    return x if stream is None else x.to(stream)


def gelu(x: Tensor, kind: str) -> Tensor:
    """kind "tanh" | "erf" """
    return F.gelu(x, approximate="tanh" if kind == "tanh" else "none")


@torch.no_grad()
def init_weights(model: SPARC, seed: int) -> SPARC:
    """Draw initial weights, the usual ViT scheme: Glorot-uniform matrices, zero biases, normal(0, 0.02) positions and
    embeddings, theta = log(1/temperature_init), prototypes of length one.  Drawn on the host in forward order, an objective's
    own last: the same on every device, and the same towers under every objective."""
    rng = torch.Generator().manual_seed(seed)
    for name, p in model.state_dict().items():
        if name in ("theta", "theta_fine"):
            p.fill_(math.log(1 / model.config.temperature_init))
        elif name.startswith("theta") or name == "logit_bias":
            pass                                          # as it was made
        elif name == "mgca.prototypes":
            p.copy_(F.normalize(torch.randn(p.shape, generator=rng), dim=-1))
        elif name.endswith("positions") or "embedding" in name:
            p.copy_(torch.randn(p.shape, generator=rng) * 0.02)
        elif name.endswith("bias"):
            p.zero_()
        elif "norm" in name:
            p.fill_(1)
        else:
            p.copy_((torch.rand(p.shape, generator=rng) * 2 - 1) * math.sqrt(6 / sum(p.shape)))
    return model


@torch.no_grad()
def load_params(model: SPARC, params: dict) -> SPARC:
    """Copy a flat dict of arrays (NumPy, torch, or anything with DLPack) into the model, in the model's dtype and device.

    Raises ValueError that says which names are missing, unknown or of another shape; then nothing has been copied.
    """
    own = model.state_dict()
    faults = [f"{name} is missing" for name in own if name not in params]
    faults += [f"{name} is unknown" for name in params if name not in own]
    faults += [
        f"{name} is {tuple(np.shape(params[name]))}, not {tuple(p.shape)}"
        for name, p in own.items()
        if name in params and tuple(np.shape(params[name])) != tuple(p.shape)
    ]
    if faults:
        more = f", and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ValueError(f"params: expected the names and shapes of this model; {'; '.join(faults[:5])}{more}")
    for name, p in own.items():
        x = params[name]
        if not isinstance(x, Tensor):
            x = torch.tensor(x) if isinstance(x, np.ndarray | np.generic | float) else torch.from_dlpack(x)
        p.copy_(x)
    return model


def dump_params(model: SPARC) -> dict[str, np.ndarray]:
    """Every parameter as a NumPy array of its own, by name, in forward order; bfloat16, which NumPy lacks, as float32."""
    return {name: to_numpy(p) for name, p in model.state_dict().items()}


def dump_grads(model: SPARC) -> dict[str, np.ndarray]:
    """Every parameter's gradient, by name, in forward order; 0 where backward left none."""
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: to_numpy(grads.get(name, torch.zeros_like(p))) for name, p in model.state_dict().items()}


def to_numpy(x: Tensor) -> np.ndarray:
    x = x.detach()
    return np.array((x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy())


def bare(model: Any) -> SPARC:
    """The SPARC inside torch.compile's and DistributedDataParallel's wrappers."""
    while not isinstance(model, SPARC):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module
    return model


def _in_forward_order(module, state_dict, prefix, local_metadata):
    """A state_dict hook: the entries in ORDER, in place."""
    names = [name for name in state_dict if name.startswith(prefix)]
    for place in ORDER:
        for name in names:
            short = name.removeprefix(prefix)
            if short == place or short.startswith(f"{place}."):
                state_dict.move_to_end(name)
