import jax
import jax.numpy as jnp


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _one(patches, words, valid, scale):
    """Each patch collects its words, then patches are told apart."""
    sim = patches @ words.T                                   # (P,L)
    low = jnp.where(valid, sim, jnp.inf).min(1, keepdims=True)
    high = jnp.where(valid, sim, -jnp.inf).max(1, keepdims=True)
    sim = jnp.where(high > low, (sim - low) / jnp.where(high > low, high - low, 1.0), 1.0)
    sim = jnp.where(valid & (sim >= 1 / valid.sum()), sim, 0.0)
    grouped = sim / sim.sum(1, keepdims=True) @ words
    z = scale * unit(grouped) @ unit(patches).T
    own = jnp.diagonal(z)
    return (jax.nn.logsumexp(z, axis=0) - own + jax.nn.logsumexp(z, axis=1) - own).mean() / 2


def patch_word_loss(patches, words, valid, log_scale):
    return jax.vmap(_one, (0, 0, 0, None))(patches, words, valid, jnp.exp(log_scale)).mean()
