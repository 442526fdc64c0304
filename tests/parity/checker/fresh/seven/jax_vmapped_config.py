import dataclasses
from typing import Optional

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class LocalLossConfig:
    threshold: Optional[float] = None        # None: one over the number of patches
    min_norm: float = 1e-12


def _normalize(x, cfg):
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), cfg.min_norm**2))


def _one_pair(patches, tokens, length, scale, cfg):
    """patches (P, D), tokens (L, D), length ()"""
    real = jnp.arange(tokens.shape[0]) < length
    threshold = 1.0 / patches.shape[0] if cfg.threshold is None else cfg.threshold
    sim = tokens @ patches.T
    lo, hi = sim.min(1, keepdims=True), sim.max(1, keepdims=True)
    flat = hi == lo
    sim = jnp.where(flat, 1.0, (sim - lo) / jnp.where(flat, 1.0, hi - lo))
    sim = jnp.where(sim < threshold, 0.0, sim)
    grouped = sim @ patches / sim.sum(1, keepdims=True)

    logits = scale * _normalize(grouped, cfg) @ _normalize(tokens, cfg).T
    rows = jax.nn.logsumexp(logits, axis=1, where=real[None, :])
    cols = jax.nn.logsumexp(logits, axis=0, where=real[:, None])
    nll = 0.5 * (rows + cols) - jnp.diagonal(logits)
    return jnp.sum(nll, where=real) / jnp.maximum(length, 1)


def batch_local_loss(patches, tokens, lengths, scale, cfg: LocalLossConfig = LocalLossConfig()):
    one = jax.vmap(lambda p, t, n: _one_pair(p, t, n, scale, cfg))
    return one(patches, tokens, lengths).mean()
