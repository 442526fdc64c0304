import jax
import jax.numpy as jnp

MAX_LOGIT = 40.0        # exp stays finite in half precision sums


def _l2norm(x, eps=1e-12):
    return x / jnp.sqrt(jnp.maximum((x * x).sum(-1, keepdims=True), eps * eps))


def _grouped(text, image):
    s = jax.lax.batch_matmul(text, image.swapaxes(1, 2))
    s = s - s.min(axis=-1, keepdims=True)
    s = s / s.max(axis=-1, keepdims=True)
    s = jax.lax.select(s < 1 / image.shape[1], jnp.zeros_like(s), s)
    return jax.lax.batch_matmul(s / s.sum(axis=-1, keepdims=True), image)


def local_loss(embeddings, logit_scale):
    """embeddings: {"image": [B,P,D], "text": [B,L,D], "text_len": [B]}; logit_scale: inverse temperature"""
    image, text = embeddings["image"], embeddings["text"]
    real = jnp.arange(text.shape[1]) < embeddings["text_len"][:, None]
    z = logit_scale * jax.lax.batch_matmul(_l2norm(_grouped(text, image)), _l2norm(text).swapaxes(1, 2))
    z = jnp.clip(z, -MAX_LOGIT, MAX_LOGIT)
    e = jnp.exp(z)
    rows = jnp.log(jnp.where(real[:, None, :], e, 0).sum(2))
    cols = jnp.log(jnp.where(real[:, :, None], e, 0).sum(1))
    nll = (rows + cols) / 2 - jnp.diagonal(z, axis1=1, axis2=2)
    return jnp.mean(jnp.where(real, nll, 0).sum(1) / real.sum(1))
