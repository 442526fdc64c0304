import functools
import jax
from jax import numpy as jnp, lax


@functools.partial(jax.jit, static_argnames=("threshold",))
def local_loss(v, t, n_tokens, tau, *, threshold=None):
    # v: B,P,D   t: B,L,D   n_tokens: B
    P, L = v.shape[1], t.shape[1]
    thr = 1 / P if threshold is None else threshold
    valid = jnp.arange(L)[None, :] < n_tokens[:, None]

    s = jnp.einsum("bld,bpd->blp", t, v)
    s = s - s.min(axis=2, keepdims=True)
    s = s / s.max(axis=2, keepdims=True)
    s = lax.select(s >= thr, s, jnp.zeros_like(s))
    # s.sum() drops out when c is brought to unit length
    c = jnp.einsum("blp,bpd->bld", s, v)
    c = c * lax.rsqrt(jnp.sum(c * c, -1, keepdims=True))
    w = t * lax.rsqrt(jnp.sum(t * t, -1, keepdims=True))
    z = jnp.einsum("bld,bmd->blm", c, w) / tau

    z1 = jnp.where(valid[:, None, :], z, -jnp.inf)
    z2 = jnp.where(valid[:, :, None], z, -jnp.inf)
    d = jnp.diagonal(z, axis1=1, axis2=2)
    nll = jax.nn.logsumexp(z1, axis=2) + jax.nn.logsumexp(z2, axis=1) - 2 * d
    return jnp.mean(jnp.sum(jnp.where(valid, nll, 0), 1) / n_tokens) / 2
