import torch
import torch.nn.functional as F


def l2_normalize(x, axis=-1):
    return x / torch.linalg.vector_norm(x, dim=axis, keepdim=True)


def masked_pairwise_contrastive_loss(a, b, mask, inverse_temperature):
    logits = torch.einsum("bmd,bnd->bmn", a, b) * inverse_temperature
    logits = torch.where(mask[:, None, :] > 0, logits, -1e30)
    labels = torch.eye(a.shape[1], dtype=logits.dtype)
    ce = -(labels * F.log_softmax(logits, dim=-1)).sum(-1)
    return (ce * mask).sum() / mask.sum()


def pairwise_loss(v_patch_embed, l_token_embed, language_mask, inverse_temperature):
    similarity = torch.einsum("btd,bpd->btp", l_token_embed, v_patch_embed)
    lo = similarity.amin(-1, keepdim=True)
    hi = similarity.amax(-1, keepdim=True)
    similarity = (similarity - lo) / (hi - lo)
    similarity = torch.where(similarity < 1 / v_patch_embed.shape[1], 0.0, similarity)
    v_align_weights = similarity / similarity.sum(-1, keepdim=True)
    l_grouped_v = l2_normalize(torch.einsum("btp,bpd->btd", v_align_weights, v_patch_embed))
    tokens = l2_normalize(l_token_embed)
    vl = masked_pairwise_contrastive_loss(l_grouped_v, tokens, language_mask, inverse_temperature)
    lv = masked_pairwise_contrastive_loss(tokens, l_grouped_v, language_mask, inverse_temperature)
    return 0.5 * (vl + lv)
