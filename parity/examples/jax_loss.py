"""SPARC's fine-grained loss (eq. 6) in JAX.      sparc-ref check parity/examples/jax_loss.py"""

import jax
import jax.numpy as jnp


def unit(x):
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return jnp.where(square == 0, 0.0, x / jnp.sqrt(jnp.where(square == 0, 1.0, square)))


@jax.jit
def sparc_loss(patches, tokens, mask, tau):
    """patches (B,P,D), tokens (B,L,D), mask (B,L) true = real token -> ()"""
    s = tokens @ jnp.swapaxes(patches, 1, 2)              # (B,L,P)
    lo, hi = jnp.min(s, -1, keepdims=True), jnp.max(s, -1, keepdims=True)
    flat = hi == lo
    s_hat = jnp.where(flat, 1.0, (s - lo) / jnp.where(flat, 1.0, hi - lo))
    s_til = jnp.where(s_hat >= 1 / patches.shape[1], s_hat, 0.0)
    c = (s_til / jnp.sum(s_til, -1, keepdims=True)) @ patches
    z = unit(c) @ jnp.swapaxes(unit(tokens), 1, 2) / tau  # (B,L,L)
    pairs = mask[:, :, None] & mask[:, None, :] | jnp.eye(mask.shape[1], dtype=bool)
    z = jnp.where(pairs, z, -jnp.inf)
    own = jnp.diagonal(z, axis1=1, axis2=2)
    both = jax.nn.logsumexp(z, axis=1) + jax.nn.logsumexp(z, axis=2) - 2 * own
    each = jnp.sum(jnp.where(mask, both, 0.0), 1) / jnp.maximum(1, jnp.sum(mask, 1))
    return jnp.mean(each) / 2
