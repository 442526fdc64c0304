"""A small causal language model: pre-norm blocks, learned positions, the embedding as its head.      C width, V vocabulary"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of the language model."""

    width: int = 256                # C
    depth: int = 4                  # blocks
    heads: int = 4                  # of attention
    ratio: int = 4                  # of the MLP's hidden width to C
    max_tokens: int = 64            # positions
    vocab_size: int = 4_000         # tokens of the tokenizer; one more is the start of a text

    def __post_init__(self):
        for name, least in (("width", 1), ("depth", 1), ("heads", 1), ("ratio", 1), ("max_tokens", 3), ("vocab_size", 3)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"heads: expected a divisor of the width {self.width}, got {self.heads}")


class GPT(nn.Module):
    """Embedded words in, logits of the next word out."""

    def __init__(self, c: GPTConfig):
        super().__init__()
        self.config = c
        self.embedding = nn.Embedding(c.vocab_size + 1, c.width)
        self.positions = nn.Parameter(torch.zeros(c.max_tokens, c.width))
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.width)

    def forward(self, x: Tensor, before: Callable[[int, Tensor], Tensor] | None = None) -> Tensor:
        """x (B,L,C) -> (B,L,V+1).      before(i, x): what becomes of x before block i"""
        if not 0 < x.shape[1] <= self.config.max_tokens:
            raise ValueError(f"tokens: expected 1 to {self.config.max_tokens} of them, got {x.shape[1]}")
        x = x + self.positions[: x.shape[1]]
        for i, block in enumerate(self.blocks):
            x = block(x if before is None else before(i, x))
        return self.norm(x) @ self.embedding.weight.T


class Block(nn.Module):
    def __init__(self, c: GPTConfig):
        super().__init__()
        self.heads = c.heads
        self.norm1 = nn.LayerNorm(c.width)
        self.attn = nn.ModuleDict({name: nn.Linear(c.width, c.width) for name in ("query", "key", "value", "out")})
        self.norm2 = nn.LayerNorm(c.width)
        self.mlp = nn.ModuleDict({"up": nn.Linear(c.width, c.ratio * c.width), "down": nn.Linear(c.ratio * c.width, c.width)})

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (self.attn[name](y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for name in ("query", "key", "value"))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn["out"](o.transpose(1, 2).flatten(2))
        return x + self.mlp["down"](F.gelu(self.mlp["up"](self.norm2(x))))


@torch.no_grad()
def draw(module: nn.Module, seed: int) -> None:
    """Initial weights, on the host, in the order of names: Glorot-uniform matrices, zero biases, norms of one, all else
    normal(0, 0.02); gates stay at 0."""
    rng = torch.Generator().manual_seed(seed)
    for name, p in sorted(module.named_parameters()):
        if name.endswith(("alpha", "beta")) or name.endswith("bias"):
            p.zero_()
        elif "norm" in name:
            p.fill_(1)
        elif name.endswith("weight") and "embedding" not in name:
            p.copy_((torch.rand(p.shape, generator=rng) * 2 - 1) * math.sqrt(6 / sum(p.shape)))
        else:
            p.copy_(torch.randn(p.shape, generator=rng) * 0.02)
