"""Similarities divided by their sum, without min-max or threshold (JAX)."""

import jax.numpy as jnp
from jax import nn

EXPECT = {
    "target": "token_loss",
    "verdict": "explained",
    "deviations": ["weights.raw=normalised"],
    "framework": "jax",
    "call": ["patches=v", "tokens=t", "mask=mask", "inv_tau=scale"],
}


def unit(x):
    return x / jnp.sqrt(jnp.clip((x**2).sum(-1, keepdims=True), 1e-24))


def token_loss(patches, tokens, mask, inv_tau):
    s = jnp.einsum("bld,bpd->blp", tokens, patches)
    total = s.sum(-1, keepdims=True)
    a = s / jnp.where(total == 0, 1, total)
    c = unit(jnp.einsum("blp,bpd->bld", a, patches))
    t = unit(tokens)
    z = inv_tau * jnp.einsum("bjd,bkd->bjk", c, t)
    big = -1e9
    one = nn.log_softmax(jnp.where(mask[:, None, :], z, big), axis=2)
    two = nn.log_softmax(jnp.where(mask[:, :, None], z, big), axis=1)
    ce = -jnp.trace(jnp.where((mask[:, :, None] & mask[:, None, :]), one + two, 0), axis1=1, axis2=2)
    return jnp.mean(ce / (2 * jnp.maximum(mask.sum(1), 1)))
