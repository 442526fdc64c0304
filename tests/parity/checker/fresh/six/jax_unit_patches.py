import jax
import jax.numpy as jnp


def normalize(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def sparc_local(params, patches, tokens, is_token):
    """params["temperature"] divides the similarities.  is_token: (B, L) float 0/1."""
    P = patches.shape[1]
    sim = jnp.einsum("nld,npd->nlp", tokens, patches)
    lo, hi = sim.min(2, keepdims=True), sim.max(2, keepdims=True)
    sim = (sim - lo) / (hi - lo)
    sim = jnp.where(sim < 1 / P, 0.0, sim)
    sim = sim / jnp.sum(sim, 2, keepdims=True)

    patches, tokens = normalize(patches), normalize(tokens)
    grouped = normalize(jnp.einsum("nlp,npd->nld", sim, patches))

    logits = jnp.einsum("nld,nmd->nlm", grouped, tokens) / params["temperature"]
    logits = jnp.where(is_token[:, None, :] > 0, logits, -1e9)
    diag = lambda x: jnp.diagonal(x, axis1=1, axis2=2)
    v2t = -diag(jax.nn.log_softmax(logits, axis=2))
    t2v = -diag(jax.nn.log_softmax(logits, axis=1))
    per = jnp.sum((v2t + t2v) * is_token, axis=1) / jnp.sum(is_token, axis=1)
    return 0.5 * jnp.mean(per)
