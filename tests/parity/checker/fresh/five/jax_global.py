import jax.numpy as jnp
from jax.nn import log_softmax


def global_loss(params, zimg, ztxt):
    """params = {"t": log(1/tau)}"""
    zimg = zimg / jnp.linalg.norm(zimg, axis=1, keepdims=True)
    ztxt = ztxt / jnp.linalg.norm(ztxt, axis=1, keepdims=True)
    logits = zimg @ ztxt.T * jnp.exp(params["t"])
    l1 = -jnp.diag(log_softmax(logits, axis=1))
    l2 = -jnp.diag(log_softmax(logits, axis=0))
    return 0.5 * jnp.mean(l1 + l2)
