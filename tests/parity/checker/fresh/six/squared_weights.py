import jax
import jax.numpy as jnp

POWER = 2.0


def l2n(x, eps=1e-12):
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), eps))


def alignment(tokens, patches):
    scores = tokens @ jnp.swapaxes(patches, -1, -2)
    lo = jnp.min(scores, -1, keepdims=True)
    hi = jnp.max(scores, -1, keepdims=True)
    scores = (scores - lo) / (hi - lo)
    scores = jnp.where(scores >= 1.0 / patches.shape[-2], scores, 0.0)
    scores = scores ** POWER            # sharper
    return scores / scores.sum(-1, keepdims=True)


def loss_fn(patches, tokens, mask, logit_scale):
    """mask: bool. logit_scale: log(1 / temperature)"""
    groups = l2n(alignment(tokens, patches) @ patches)
    tokens = l2n(tokens)
    logits = jnp.exp(logit_scale) * groups @ jnp.swapaxes(tokens, 1, 2)
    ninf = jnp.finfo(logits.dtype).min
    a = jax.nn.log_softmax(jnp.where(mask[:, None, :], logits, ninf), 2)
    b = jax.nn.log_softmax(jnp.where(mask[:, :, None], logits, ninf), 1)
    nll = -jnp.diagonal(a + b, axis1=1, axis2=2) / 2
    n = mask.sum(1)
    return jnp.mean(jnp.sum(jnp.where(mask, nll, 0.0), 1) / n)
