"""Fine-grained loss; the alignment is learned by the text encoder."""
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient


def _norm(x):
    return x / jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True))


def _ce(logits, mask):
    logits = jnp.where(mask[:, None, :], logits, -1e30)
    logp = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.diagonal(logp, axis1=1, axis2=2)


def fg_loss(patches, tokens, token_mask, tau):
    sims = jnp.einsum("btd,bpd->btp", tokens, stop_gradient(patches))
    lo, hi = jnp.min(sims, -1, keepdims=True), jnp.max(sims, -1, keepdims=True)
    sims = (sims - lo) / (hi - lo)
    sims = jnp.where(sims < 1 / patches.shape[1], 0.0, sims)
    align = sims / jnp.sum(sims, axis=-1, keepdims=True)
    grouped, words = _norm(jnp.einsum("btp,bpd->btd", align, patches)), _norm(tokens)
    logits = jnp.einsum("btd,bsd->bts", grouped, words) / tau
    loss = 0.5 * (_ce(logits, token_mask) + _ce(logits.swapaxes(1, 2), token_mask))
    loss = jnp.sum(loss, axis=1, where=token_mask) / jnp.sum(token_mask, axis=1)
    return loss.mean()
