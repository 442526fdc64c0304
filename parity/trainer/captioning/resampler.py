"""The Perceiver Resampler of Flamingo (arXiv 2204.14198, figure 5): any number of patches -> R latents.

N pictures, P patches, R latents, C width.  What the paper leaves open is as in open_flamingo: LayerNorms with a bias,
matrices without, GELU (the paper's is the squared ReLU), heads of 64.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Resampler(nn.Module):
    """Each layer: latents += attention(latents, [patches; latents]), latents += ffn(latents); then a norm.

    c: an object with latents, resampler_depth, heads, head_width, ratio, activation; width: the tower's
    """

    def __init__(self, width: int, c: Any):
        super().__init__()
        self.latents = nn.Parameter(torch.zeros(c.latents, width))
        self.time = nn.Parameter(torch.zeros(width))      # Flamingo's time embedding: a picture is a film of one frame
        self.layers = nn.ModuleList(Layer(width, c) for _ in range(c.resampler_depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        """features (N,P,C) -> (N,R,C)"""
        features = features + self.time
        latents = self.latents.expand(len(features), -1, -1)
        for layer in self.layers:
            latents = layer(features, latents)
        return self.norm(latents)


class Layer(nn.Module):
    def __init__(self, width: int, c: Any):
        super().__init__()
        self.norm_features = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.attn = CrossAttention(width, width, c.heads, c.head_width)
        self.ffn = FeedForward(width, c.ratio, c.activation)

    def forward(self, features: Tensor, latents: Tensor) -> Tensor:
        x = self.norm_latents(latents)
        latents = latents + self.attn(x, torch.cat([self.norm_features(features), x], 1))
        return latents + self.ffn(latents)


class CrossAttention(nn.Module):
    """softmax(q k' / sqrt(width of a head)) v in each head; a query that may look at nothing gets exactly 0."""

    def __init__(self, width: int, seen_width: int, heads: int, head_width: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, heads * head_width, bias=False)
        self.key = nn.Linear(seen_width, heads * head_width, bias=False)
        self.value = nn.Linear(seen_width, heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width, bias=False)

    def forward(self, x: Tensor, seen: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B,L,C), seen (B,S,D), mask (B,L,S) bool, true = may be looked at, or None -> (B,L,C)"""
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2)                      # (B,heads,L or S,head_width)
                   for y in (self.query(x), self.key(seen), self.value(seen)))
        if mask is None:
            return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        some = mask.any(-1, keepdim=True)                 # (B,L,1); a row of masked keys alone is NaN in some kernels
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=(mask | ~some)[:, None])
        return torch.where(some, self.out(o.transpose(1, 2).flatten(2)), 0)


class FeedForward(nn.Module):
    """act(norm(x) up') down'.      x (...,C) -> (...,C)"""

    def __init__(self, width: int, ratio: int, activation: str):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, ratio * width, bias=False)
        self.down = nn.Linear(ratio * width, width, bias=False)
        self.squared = activation == "squared_relu"

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.norm(x))
        return self.down(F.relu(x) ** 2 if self.squared else F.gelu(x))
