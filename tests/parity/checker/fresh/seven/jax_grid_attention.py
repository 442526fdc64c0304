import math

import jax
import jax.numpy as jnp


def _unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _contrast(grouped, words, mask, temperature):
    logits = jnp.einsum("bid,bjd->bij", _unit(grouped), _unit(words)) / temperature
    big = jnp.finfo(logits.dtype).min
    rows = jax.nn.log_softmax(jnp.where(mask[:, None, :], logits, big), axis=2)
    cols = jax.nn.log_softmax(jnp.where(mask[:, :, None], logits, big), axis=1)
    diag = jnp.einsum("bii->bi", rows) + jnp.einsum("bii->bi", cols)
    diag = jnp.where(mask, diag, 0.0)
    return -jnp.mean(diag.sum(1) / jnp.maximum(mask.sum(1), 1)) / 2


def spatial_local_loss(patches, words, mask, temperature):
    """patches [B, P, D] in raster order of a square image, words [B, L, D], mask [B, L] bool."""
    b, p, d = patches.shape
    side = math.isqrt(p)
    assert side * side == p, "square images only"
    grid = patches.reshape(b, side, side, d)
    sim = jnp.einsum("bld,bhwd->blhw", words, grid)
    low = sim.min(axis=(2, 3), keepdims=True)
    high = sim.max(axis=(2, 3), keepdims=True)
    sim = (sim - low) / (high - low)
    sim = jnp.where(sim >= 1.0 / p, sim, 0.0)
    attn = sim / sim.sum(axis=(2, 3), keepdims=True)
    grouped = jnp.einsum("blhw,bhwd->bld", attn, grid)
    return _contrast(grouped, words, mask, temperature)
