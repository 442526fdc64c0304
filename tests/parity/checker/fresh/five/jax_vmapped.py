"""SPARC fine-grained term, eq 2-6, one sample at a time and vmapped."""
import jax
import jax.numpy as jnp


def _one(patches, tokens, valid, scale):
    sim = tokens @ patches.T
    lo = sim.min(axis=-1, keepdims=True)
    hi = sim.max(axis=-1, keepdims=True)
    sim = (sim - lo) / (hi - lo)
    sim = jnp.where(sim < 1.0 / patches.shape[0], 0.0, sim)
    grouped = sim @ patches / sim.sum(axis=-1, keepdims=True)

    def unit(x):
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    logits = scale * unit(grouped) @ unit(tokens).T

    def nll(z):
        z = jnp.where(valid[None, :], z, -1e30)
        return jax.nn.logsumexp(z, axis=-1) - jnp.diagonal(z)

    per_token = jnp.where(valid, 0.5 * (nll(logits) + nll(logits.T)), 0.0)
    return per_token.sum() / valid.sum()


def sparc_loss(patches, tokens, valid, log_scale):
    return jax.vmap(_one, in_axes=(0, 0, 0, None))(patches, tokens, valid, jnp.exp(log_scale)).mean()
