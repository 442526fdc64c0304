"""JAX, close to the listing of the paper: one-hot targets, masks as floats."""

import jax
import jax.numpy as jnp

EXPECT = {
    "target": "sparc_local",
    "verdict": "listing1",
    "framework": "jax",
    "call": ["image=v", "text=t", "language_mask=mask_float", "inverse_temperature=scale"],
    "returns": {"loss": "fine", "weights": None},
}


def l2(x):
    return x / jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


def masked_contrastive(a, b, mask, inverse_temperature):
    logits = jnp.einsum("bnd,bmd->bnm", l2(a), l2(b)) * inverse_temperature
    logits = jnp.where(mask[:, None, :] > 0, logits, -1e9)
    one_hot = jnp.eye(a.shape[1])[None]
    xent = -(one_hot * jax.nn.log_softmax(logits, -1)).sum(-1)
    return jnp.where(mask > 0, xent, 0).sum() / jnp.maximum(mask.sum(), 1)


def sparc_local(*, image, text, language_mask, inverse_temperature):
    sim = jnp.einsum("bnd,bpd->bnp", text, image)
    low, high = sim.min(-1, keepdims=True), sim.max(-1, keepdims=True)
    sim = jnp.where(high > low, (sim - low) / jnp.where(high > low, high - low, 1), 1)
    sim = jnp.where(sim < 1 / image.shape[1], 0, sim)
    weights = sim / sim.sum(-1, keepdims=True)
    grouped = jnp.einsum("bnp,bpd->bnd", weights, image)
    one = masked_contrastive(grouped, text, language_mask, inverse_temperature)
    two = masked_contrastive(text, grouped, language_mask, inverse_temperature)
    return {"loss": (one + two) / 2, "weights": weights}
