# pseudo-code from the appendix, made to run
import jax
import jax.numpy as jnp
from jax import nn

INF = 1e9


def l2_normalize(x, axis=-1):
    return x / jnp.sqrt(jnp.sum(x * x, axis=axis, keepdims=True))


def pairwise_contrastive_loss(a, b):
    labels = jnp.eye(a.shape[0])
    logits = a @ b.T
    return -jnp.sum(labels * nn.log_softmax(logits, axis=-1), axis=-1)


def masked_pairwise_contrastive_loss(a, b, mask, inverse_temperature):
    batch_size, seq_len, _ = a.shape
    mask_logits = jnp.repeat(mask[:, None, :], seq_len, axis=1)
    labels = jnp.eye(seq_len)[None]
    logits = jnp.matmul(a, jnp.swapaxes(b, 1, 2)) * inverse_temperature
    logits = logits - (1.0 - mask_logits) * INF
    loss = -jnp.sum(labels * nn.log_softmax(logits, axis=-1), axis=-1)
    return jnp.sum(loss * mask) / jnp.sum(mask)


def fine_grained_loss(v_patch_embed, l_token_embed, language_mask, inverse_temperature, similarity_threshold=None):
    if similarity_threshold is None:
        similarity_threshold = 1 / v_patch_embed.shape[1]
    # similarity calculation
    similarity = jnp.einsum("btd,bpd->btp", l_token_embed, v_patch_embed)
    # min-max normalisation
    similarity = (similarity - jnp.min(similarity, axis=-1, keepdims=True)) / (
        jnp.max(similarity, axis=-1, keepdims=True) - jnp.min(similarity, axis=-1, keepdims=True))
    # thresholding
    similarity = jnp.where(similarity < similarity_threshold, 0.0, similarity)
    # alignment-weighting
    v_align_weights = similarity / jnp.sum(similarity, axis=-1, keepdims=True)
    l_grouped_v_patch_embed = jnp.einsum("btp,bpd->btd", v_align_weights, v_patch_embed)
    l_grouped_v_patch_embed = l2_normalize(l_grouped_v_patch_embed)
    l_token_embed = l2_normalize(l_token_embed)
    loss_vl_local = masked_pairwise_contrastive_loss(l_grouped_v_patch_embed, l_token_embed, language_mask, inverse_temperature)
    loss_lv_local = masked_pairwise_contrastive_loss(l_token_embed, l_grouped_v_patch_embed, language_mask, inverse_temperature)
    return 0.5 * (loss_vl_local + loss_lv_local)
