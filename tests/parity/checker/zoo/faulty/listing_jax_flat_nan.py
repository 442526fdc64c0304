"""Listing 1 in JAX, literal 0/0, inner products as logits."""

import jax
import jax.numpy as jnp

EXPECT = {
    "target": "loss_fn",
    "verdict": "explained",
    "deviations": ["minmax.nan_on_flat", "norm.missing", "reduction.token"],
    "also": ["edge.zero_padding"],
    "framework": "jax",
    "call": ["v", "t", "mask", "scale"],
}


@jax.jit
def loss_fn(v, t, mask, scale):
    s = jnp.einsum("btd,bpd->btp", t, v)
    lo, hi = s.min(-1, keepdims=True), s.max(-1, keepdims=True)
    s = (s - lo) / (hi - lo)
    s = jnp.where(s >= 1 / v.shape[1], s, 0)
    c = jnp.einsum("btp,bpd->btd", s / s.sum(-1, keepdims=True), v)
    z = scale * jnp.einsum("bnd,bmd->bnm", c, t)
    big = jnp.finfo(z.dtype).min
    a = jax.nn.log_softmax(jnp.where(mask[:, None, :], z, big), axis=2)
    b = jax.nn.log_softmax(jnp.where(mask[:, :, None], z, big), axis=1)
    own = jnp.where(mask, jnp.diagonal(a, axis1=1, axis2=2) + jnp.diagonal(b, axis1=1, axis2=2), 0)
    return -own.sum() / (2 * jnp.maximum(mask.sum(), 1))
