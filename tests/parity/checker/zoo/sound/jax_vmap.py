"""JAX: written for one pair, then vmapped."""

import jax
import jax.numpy as jnp

EXPECT = {
    "target": "fine_grained_loss",
    "verdict": "eq6",
    "framework": "jax",
    "call": ["v", "t", "mask", "scale"],
}


def _unit(x):
    square = jnp.sum(x * x, -1, keepdims=True)
    return x / jnp.sqrt(jnp.where(square == 0, 1.0, square))


def _align(v, t):
    s = t @ v.T
    lo, hi = s.min(-1, keepdims=True), s.max(-1, keepdims=True)
    flat = lo == hi
    w = jnp.where(flat, 1.0, (s - lo) / jnp.where(flat, 1.0, hi - lo))
    w = jnp.where(w < 1 / v.shape[0], 0.0, w)
    return (w / w.sum(-1, keepdims=True)) @ v


def _one(v, t, m, scale):
    c, u = _unit(_align(v, t)), _unit(t)
    z = scale * c @ u.T
    up = _lse(z, m)
    down = _lse(z.T, m)
    per_token = jnp.where(m, (up + down) / 2 - jnp.diagonal(z), 0.0)
    return per_token.sum() / jnp.maximum(m.sum(), 1)


def _lse(z, m):
    z = jnp.where(m[None, :], z, jnp.finfo(z.dtype).min)
    top = jax.lax.stop_gradient(z.max(-1, keepdims=True))
    return jnp.log(jnp.sum(jnp.exp(z - top), -1)) + top[:, 0]


def fine_grained_loss(patches, tokens, mask, inv_temperature):
    return jax.vmap(_one, in_axes=(0, 0, 0, None))(patches, tokens, mask, inv_temperature).mean()
