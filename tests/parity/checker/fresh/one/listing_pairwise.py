"""Pairwise contrastive loss over masked tokens, following the pseudo-code of the paper."""
import torch


def l2_normalize(x, axis=-1):
    return x / torch.sqrt(torch.sum(x * x, dim=axis, keepdim=True))


def masked_pairwise_contrastive_loss(a, b, mask, inverse_temperature):
    batch_size, seq_len, _ = a.shape
    labels = torch.eye(seq_len, dtype=a.dtype, device=a.device)[None].repeat(batch_size, 1, 1)
    mask_logits = mask[:, None, :].repeat(1, seq_len, 1)
    logits = torch.einsum("bmd,bnd->bmn", a, b) * inverse_temperature
    neg_inf = -1e9
    logits = torch.where(mask_logits > 0, logits, torch.full_like(logits, neg_inf))
    loss = -(labels * torch.log_softmax(logits, dim=-1)).sum(-1)
    return torch.sum(loss * mask) / torch.sum(mask)


def sparc_local(v_patch_embed, l_token_embed, language_mask, inverse_temperature, similarity_threshold=None):
    if similarity_threshold is None:
        similarity_threshold = 1.0 / v_patch_embed.shape[1]
    similarity = torch.einsum("btd,bpd->btp", l_token_embed, v_patch_embed)
    similarity = (similarity - similarity.amin(-1, keepdim=True)) / (
        similarity.amax(-1, keepdim=True) - similarity.amin(-1, keepdim=True)
    )
    similarity = torch.where(similarity < similarity_threshold, 0.0, similarity)
    v_align_weights = similarity / similarity.sum(-1, keepdim=True)
    l_grouped_v_patch_embed = torch.einsum("btp,bpd->btd", v_align_weights, v_patch_embed)
    l_grouped_v_patch_embed = l2_normalize(l_grouped_v_patch_embed)
    l_token_embed = l2_normalize(l_token_embed)
    loss_vl_local = masked_pairwise_contrastive_loss(
        l_grouped_v_patch_embed, l_token_embed, language_mask, inverse_temperature
    )
    loss_lv_local = masked_pairwise_contrastive_loss(
        l_token_embed, l_grouped_v_patch_embed, language_mask, inverse_temperature
    )
    return 0.5 * (loss_vl_local + loss_lv_local)
