import jax
import jax.numpy as jnp


def normalize(x, axis=-1, eps=1e-12):
    return x / jnp.maximum(jnp.linalg.norm(x, axis=axis, keepdims=True), eps)


def align(text, image):
    sim = jnp.einsum("...ld,...pd->...lp", text, image)
    lo, hi = sim.min(-1, keepdims=True), sim.max(-1, keepdims=True)
    sim = (sim - lo) / (hi - lo)
    sim = sim * (sim >= 1 / sim.shape[-1])
    return jnp.einsum("...lp,...pd->...ld", sim / sim.sum(-1, keepdims=True), image)


def token_infonce(params, batch):
    """params {"log_temp"}; batch {"image_tokens" [B,P,D], "text_tokens" [B,L,D], "text_mask" [B,L]}"""
    text, image, mask = batch["text_tokens"], batch["image_tokens"], batch["text_mask"].reshape(-1) > 0
    d = text.shape[-1]
    grouped = normalize(align(text, image).reshape(-1, d))
    text = normalize(text.reshape(-1, d))
    logits = grouped @ text.T / jnp.exp(params["log_temp"])

    def nll(z):
        lse = jax.nn.logsumexp(jnp.where(mask[None, :], z, -jnp.inf), axis=1)
        return jnp.where(mask, lse - jnp.diag(z), 0).sum() / mask.sum()

    return 0.5 * (nll(logits) + nll(logits.T))
