"""Direct port of the pseudo code in the appendix of the SPARC paper (Listing 1), local part."""
import torch
from torch.nn.functional import normalize


def pairwise_contrastive_loss(a, b, labels, inverse_temperature, mask):
    logits = torch.einsum("bmd,bnd->bmn", a, b) * inverse_temperature
    logits = torch.where(mask[:, None, :], logits, torch.full_like(logits, -torch.inf))
    log_p = torch.log_softmax(logits, -1)
    return -torch.gather(log_p, 2, labels[:, :, None])[..., 0]


def masked_pairwise_contrastive_loss(a, b, mask, inverse_temperature):
    labels = torch.arange(a.shape[1], device=a.device)[None].repeat(a.shape[0], 1)
    loss = pairwise_contrastive_loss(a, b, labels, inverse_temperature, mask)
    loss = torch.where(mask, loss, torch.zeros_like(loss))
    return loss.sum() / mask.sum()


def sparc_finegrained(v_patch_embed, l_token_embed, language_mask, inverse_temperature):
    # Similarity calculation
    similarity = torch.einsum("btd,bpd->btp", l_token_embed, v_patch_embed)

    # Min-max normalisation
    s_min = similarity.amin(-1, keepdim=True)
    s_max = similarity.amax(-1, keepdim=True)
    similarity = (similarity - s_min) / (s_max - s_min)

    # Thresholding
    similarity_threshold = 1 / v_patch_embed.shape[1]
    similarity = torch.where(similarity < similarity_threshold, 0.0, similarity)

    # Alignment-weighting
    v_align_weights = similarity / similarity.sum(-1, keepdim=True)
    l_grouped_v_patch_embed = torch.einsum("btp,bpd->btd", v_align_weights, v_patch_embed)

    l_grouped_v_patch_embed = normalize(l_grouped_v_patch_embed, dim=-1)
    l_token_embed = normalize(l_token_embed, dim=-1)

    loss_vl_local = masked_pairwise_contrastive_loss(
        l_grouped_v_patch_embed, l_token_embed, language_mask, inverse_temperature)
    loss_lv_local = masked_pairwise_contrastive_loss(
        l_token_embed, l_grouped_v_patch_embed, language_mask, inverse_temperature)
    return 0.5 * (loss_vl_local + loss_lv_local)
