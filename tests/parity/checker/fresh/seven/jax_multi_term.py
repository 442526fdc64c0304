from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import log_softmax


class Aux(NamedTuple):
    contrastive: jax.Array
    alignment: jax.Array
    kept: jax.Array


def l2(x):
    return x / jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True))


def contrastive(images, texts, scale):
    logits = scale * jnp.matmul(l2(images), l2(texts).T)
    image_to_text = -jnp.mean(jnp.diag(log_softmax(logits, axis=1)))
    text_to_image = -jnp.mean(jnp.diag(log_softmax(logits, axis=0)))
    return (image_to_text + text_to_image) / 2


def alignment(patches, tokens, paddings, scale):
    real = 1.0 - paddings
    s = jnp.matmul(tokens, patches.swapaxes(1, 2))
    lo = jnp.min(s, -1, keepdims=True)
    s = (s - lo) / (jnp.max(s, -1, keepdims=True) - lo)
    kept = s >= 1 / patches.shape[1]
    s = s * kept
    s = s / jnp.sum(s, -1, keepdims=True)
    logits = scale * jnp.matmul(l2(jnp.matmul(s, patches)), l2(tokens).swapaxes(1, 2))
    a = log_softmax(logits - 1e15 * paddings[:, None, :], axis=-1)
    b = log_softmax(logits - 1e15 * paddings[:, :, None], axis=-2)
    nll = -(jnp.diagonal(a, axis1=1, axis2=2) + jnp.diagonal(b, axis1=1, axis2=2)) / 2
    per_text = jnp.sum(jnp.where(real > 0, nll, 0), 1) / jnp.sum(real, 1)
    return per_text.mean(), kept.mean()


def loss_fn(image_embed, text_embed, image_tokens, text_tokens, text_paddings, log_scale, global_weight=0.5, local_weight=1.0):
    """Paddings are 1.0 where a position is padding."""
    scale = jnp.exp(log_scale)
    g = contrastive(image_embed, text_embed, scale)
    f, kept = alignment(image_tokens, text_tokens, text_paddings, scale)
    return global_weight * g + local_weight * f, Aux(g, f, kept)
