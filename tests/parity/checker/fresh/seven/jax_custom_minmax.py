import functools

import jax
import jax.numpy as jnp


@jax.custom_vjp
def minmax(s):
    lo = s.min(-1, keepdims=True)
    return (s - lo) / (s.max(-1, keepdims=True) - lo)


def _minmax_fwd(s):
    y = minmax(s)
    return y, y


def _minmax_bwd(y, dy):
    at_max = (y == 1).astype(dy.dtype)
    at_min = (y == 0).astype(dy.dtype)
    through_range = (dy * y).sum(-1, keepdims=True)
    through_min = dy.sum(-1, keepdims=True) - through_range
    return (dy - at_max * through_range - at_min * through_min,)


minmax.defvjp(_minmax_fwd, _minmax_bwd)


@functools.partial(jax.jit, static_argnames="sigma")
def local_loss(words, patches, word_mask, logit_scale, sigma=None):
    """words [B,L,D], patches [B,P,D], word_mask [B,L] bool, logit_scale: log(1/temperature)"""
    sigma = 1 / patches.shape[1] if sigma is None else sigma
    h = minmax(jnp.einsum("bld,bpd->blp", words, patches))
    h = jnp.where(h >= sigma, h, 0)
    c = jnp.einsum("blp,bpd->bld", h / h.sum(-1, keepdims=True), patches)
    c = c / jnp.linalg.norm(c, axis=-1, keepdims=True)
    w = words / jnp.linalg.norm(words, axis=-1, keepdims=True)
    z = jnp.exp(logit_scale) * jnp.einsum("bid,bjd->bij", c, w)
    rows = jax.nn.logsumexp(z, axis=2, where=word_mask[:, None, :])
    cols = jax.nn.logsumexp(z, axis=1, where=word_mask[:, :, None])
    nll = (rows + cols) / 2 - jnp.diagonal(z, axis1=1, axis2=2)
    return (jnp.where(word_mask, nll, 0).sum(1) / word_mask.sum(1)).mean()
