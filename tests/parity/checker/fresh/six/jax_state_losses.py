"""SPARC losses in JAX."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Losses(NamedTuple):
    total: jax.Array
    contrastive: jax.Array
    fine_grained: jax.Array


def _l2(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _pairwise_loss(logits):
    labels = jnp.arange(logits.shape[0])
    lse = jax.nn.logsumexp(logits, axis=1)
    return lse - logits[labels, labels]


def _per_example(patches, tokens, mask, scale):
    sim = tokens @ patches.T
    lo, hi = sim.min(-1, keepdims=True), sim.max(-1, keepdims=True)
    flat = hi - lo <= 0
    sim = jnp.where(flat, 1.0, (sim - lo) / jnp.where(flat, 1.0, hi - lo))
    sim = jnp.where(sim < 1.0 / patches.shape[0], 0.0, sim)
    weights = sim / sim.sum(-1, keepdims=True)
    grouped = weights @ patches
    # dummy rows so that the norm of a padded row is harmless
    tokens = jnp.where(mask[:, None], tokens, 1.0)
    logits = scale * _l2(grouped) @ _l2(tokens).T
    neg = jnp.finfo(logits.dtype).min
    a = _pairwise_loss(jnp.where(mask[None, :], logits, neg))
    b = _pairwise_loss(jnp.where(mask[None, :], logits.T, neg))
    loss = jnp.where(mask, a + b, 0.0)
    return loss.sum() / jnp.maximum(mask.sum(), 1)


def sparc_losses(image_emb, text_emb, patches, tokens, mask, log_scale,
                 global_weight=0.5, local_weight=1.0) -> Losses:
    """image_emb, text_emb: [B, D]; patches: [B, P, D]; tokens: [B, T, D]; mask: bool [B, T]."""
    scale = jnp.exp(log_scale)
    logits = scale * _l2(image_emb) @ _l2(text_emb).T
    contrastive = 0.5 * (_pairwise_loss(logits).mean() + _pairwise_loss(logits.T).mean())
    fine = 0.5 * jax.vmap(_per_example, in_axes=(0, 0, 0, None))(patches, tokens, mask, scale).mean()
    return Losses(global_weight * contrastive + local_weight * fine, contrastive, fine)
