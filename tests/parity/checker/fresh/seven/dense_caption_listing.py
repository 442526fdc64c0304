import torch
import torch.nn.functional as F


def masked_pairwise_contrastive_loss(a, b, mask, inverse_temperature):
    batch_size, seq_len, _ = a.shape
    logits = torch.einsum("bmd,bnd->bmn", a, b) * inverse_temperature
    logits = logits + torch.where(mask[:, None, :] > 0, 0.0, -1e9).to(logits.dtype)
    labels = torch.eye(seq_len, device=a.device, dtype=logits.dtype)
    per_token = -(labels * F.log_softmax(logits, dim=-1)).sum(-1)
    return (per_token * mask).sum() / mask.sum()


def dense_caption_loss(v_patch_embed, l_token_embed, language_mask, temperature):
    """v_patch_embed (B,P,D), l_token_embed (B,N,D), language_mask (B,N) float"""
    similarity = torch.einsum("bnd,bpd->bnp", l_token_embed, v_patch_embed)
    lo, hi = similarity.amin(-1, keepdim=True), similarity.amax(-1, keepdim=True)
    similarity = (similarity - lo) / (hi - lo)
    similarity = torch.where(similarity < 1 / v_patch_embed.shape[1], 0.0, similarity)
    weights = similarity / similarity.sum(-1, keepdim=True)
    l_grouped_v = F.normalize(torch.einsum("bnp,bpd->bnd", weights, v_patch_embed), dim=-1)
    l_token = F.normalize(l_token_embed, dim=-1)

    vl = masked_pairwise_contrastive_loss(l_grouped_v, l_token, language_mask, 1 / temperature)
    lv = masked_pairwise_contrastive_loss(l_token, l_grouped_v, language_mask, 1 / temperature)
    return 0.5 * (vl + lv)
