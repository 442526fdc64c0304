import jax
import jax.numpy as jnp
from jax import lax


def local_loss(params, image, text, text_valid):
    """params: {"log_scale": ()}"""
    sim = jnp.matmul(text, image.transpose(0, 2, 1))
    lo = lax.stop_gradient(sim.min(-1, keepdims=True))         # constants of the row
    hi = lax.stop_gradient(sim.max(-1, keepdims=True))
    sim = (sim - lo) / (hi - lo)
    sim = jnp.where(sim >= 1 / image.shape[1], sim, 0.0)
    group = jnp.matmul(sim, image)
    group = group / jnp.linalg.norm(group, axis=-1, keepdims=True)
    text = text / jnp.linalg.norm(text, axis=-1, keepdims=True)
    logits = jnp.exp(params["log_scale"]) * jnp.matmul(group, text.transpose(0, 2, 1))
    cols = text_valid[:, None, :]
    rows = jax.nn.log_softmax(logits, -1, where=cols)
    back = jax.nn.log_softmax(logits.transpose(0, 2, 1), -1, where=cols)
    diag = jnp.diagonal(rows + back, axis1=1, axis2=2)
    return -(jnp.where(text_valid, diag, 0.0).sum(1) / text_valid.sum(1)).mean() / 2
