"""The gated cross-attention layer that stands before a frozen block of the language model (arXiv 2204.14198, figure 4).

B sequences, L words, T pictures, R latents of each, C the language model's width, D the latents'.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from parity.trainer.captioning.resampler import CrossAttention, FeedForward


class Gated(nn.Module):
    """y += tanh(alpha) attention(norm(y), latents), y += tanh(beta) ffn(y); both gates start at 0, and y passes unchanged."""

    def __init__(self, width: int, seen_width: int, c: Any):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attn = CrossAttention(width, seen_width, c.heads, c.head_width)
        self.ffn = FeedForward(width, c.ratio, c.activation)
        self.alpha = nn.Parameter(torch.zeros(()))
        self.beta = nn.Parameter(torch.zeros(()))

    def forward(self, y: Tensor, latents: Tensor, mask: Tensor) -> Tensor:
        """y (B,L,C), latents (B,T*R,D), mask (B,L,T*R) bool of seen_by() -> (B,L,C)"""
        y = y + torch.tanh(self.alpha) * self.attn(self.norm(y), latents, mask)
        return y + torch.tanh(self.beta) * self.ffn(y)


def seen_by(is_picture: Tensor, pictures: int, latents: int) -> Tensor:
    """Which latents each word looks at: those of the last picture before it, of none before the first.

    is_picture (B,L) bool: where <image> stands, which sees its own picture -> (B,L,pictures*latents) bool
    """
    count = is_picture.cumsum(1)                          # (B,L) pictures up to here; the last of them is number count
    own = count[..., None] == torch.arange(1, pictures + 1, device=count.device)          # (B,L,T)
    return own.repeat_interleave(latents, dim=2)
