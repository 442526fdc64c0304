"""How a replay computes: exactly, or as the reference itself would in bfloat16, whose loss is what budgets are made of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity.ladder.rungs.rounded import round_to


@dataclass(frozen=True)
class Arithmetic:
    """How the replay computes.

    narrow   round where autocast does; False: nowhere, for a float64 or float32 run
    own      the reference's own run, whose distance from the exact one is what budgets are made of: float32 throughout,
             what comes out rounded as well, and attention's weights and their gradients rounded before their products, as
             fused kernels do.  False: float64, and what comes out is left as it is
    """

    narrow: bool
    own: bool
    stream: bool = False                                  # what runs through the blocks is rounded too, and its gradients

    @property
    def dtype(self) -> type:
        return np.float32 if self.own else np.float64

    def give(self, x: Any) -> np.ndarray:
        return np.asarray(x, self.dtype)

    def r(self, x: Any) -> np.ndarray:
        """Rounded, where a trainer's operand or an inner result is."""
        return self.give(round_to(x, 7)) if self.narrow else self.give(x)

    def s(self, x: Any) -> np.ndarray:
        """Rounded where the trainer's stream is."""
        return self.r(x) if self.stream else self.give(x)

    def out(self, x: Any) -> np.ndarray:
        """What the trainer's rounded tensor is compared with."""
        return self.r(x) if self.own else self.give(x)

    def linear(self, ops: Any, x: Any, weight: Any, bias: Any) -> tuple[np.ndarray, Callable]:
        y, back = ops.linear(self.r(x), self.r(weight), self.r(bias))
        return y, lambda dy: back(self.r(dy))

    def attention(self, ops: Any, qkv: Any, heads: int, mask: Any) -> tuple[np.ndarray, Callable]:
        if not (self.own and self.narrow):
            return ops.attention(self.give(qkv), heads, mask)
        return fused_attention(self.give(qkv), heads, mask, self.r)


def fused_attention(qkv: np.ndarray, heads: int, mask: np.ndarray | None, r: Callable) -> tuple[np.ndarray, Callable]:
    """What fused kernels lose: weights and the gradients of scores are rounded before their products, and the row sums of the
    softmax's gradient are taken from the rounded output.

    qkv (B,L,3C), mask (B,L) or None, r: rounds -> (B,L,C); back(dy) -> dqkv
    """
    B, L, C = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3

    def split(x):                                         # (B,L,C) -> (B,heads,L,C/heads)
        return x.reshape(B, L, heads, C // heads).transpose(0, 2, 1, 3)

    def merge(x):
        return x.transpose(0, 2, 1, 3).reshape(B, L, C)

    q, k, v = (split(x) for x in np.split(qkv, 3, -1))
    scale = (C // heads) ** -0.5
    s = q @ k.swapaxes(2, 3) * scale                      # (B,heads,L,L)
    if mask is not None:
        s = np.where(mask[:, None, None, :], s, -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    o = r(p) @ v

    def back(dy):
        dy = split(dy)
        ds = r(p * (dy @ v.swapaxes(2, 3) - np.sum(dy * r(o), -1, keepdims=True)))
        dq, dk, dv = ds @ k * scale, ds.swapaxes(2, 3) @ q * scale, r(p).swapaxes(2, 3) @ dy
        return np.concatenate([merge(x) for x in (dq, dk, dv)], -1)

    return merge(o), back
