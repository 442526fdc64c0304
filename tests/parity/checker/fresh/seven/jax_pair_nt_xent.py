import jax
import jax.numpy as jnp


def safe_normalize(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def group_patches(tokens, patches):
    scores = jnp.einsum("bld,bpd->blp", tokens, patches)
    scores -= scores.min(-1, keepdims=True)
    scores /= scores.max(-1, keepdims=True)
    scores = jnp.where(scores < 1 / patches.shape[1], 0, scores)
    return jnp.einsum("blp,bpd->bld", scores / scores.sum(-1, keepdims=True), patches)


def nt_xent(a, b, mask, scale):
    """a, b [B, L, D] unit; every other entry of row and column is a negative of a pair."""
    z = scale * jnp.einsum("bid,bjd->bij", a, b)
    length = z.shape[1]
    positive = jnp.einsum("bii->bi", z)
    valid = mask[:, None, :] & mask[:, :, None]
    others = valid & ~jnp.eye(length, dtype=bool)
    row = jnp.where(valid, z, -1e30)
    col = jnp.where(others, z, -1e30).swapaxes(1, 2)
    both = jnp.concatenate([row, col], axis=-1)
    nll = jax.nn.logsumexp(both, axis=-1) - positive
    return jnp.where(mask, nll, 0).sum(-1) / mask.sum(-1)


def local_objective(image_tokens, text_tokens, text_mask, temperature):
    grouped = safe_normalize(group_patches(text_tokens, image_tokens))
    text = safe_normalize(text_tokens)
    return nt_xent(grouped, text, text_mask.astype(bool), 1.0 / temperature).mean()
