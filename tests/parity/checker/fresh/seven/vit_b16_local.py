import math

import torch
import torch.nn.functional as F

NUM_PATCHES = 14 * 14          # ViT-B/16 at 224


def local_contrastive(img_tokens, txt_tokens, txt_lens, log_temperature):
    bsz, seqlen, _ = txt_tokens.shape
    score = torch.bmm(txt_tokens, img_tokens.transpose(1, 2))
    mn, mx = score.min(-1, keepdim=True).values, score.max(-1, keepdim=True).values
    score = (score - mn) / (mx - mn)
    score = torch.where(score < 1.0 / NUM_PATCHES, torch.zeros_like(score), score)
    attn = score / score.sum(-1, keepdim=True)
    groups = F.normalize(torch.bmm(attn, img_tokens), dim=-1)
    words = F.normalize(txt_tokens, dim=-1)

    valid = torch.arange(seqlen, device=score.device)[None] < torch.as_tensor(txt_lens, device=score.device)[:, None]
    sim = torch.bmm(groups, words.transpose(1, 2)) * torch.exp(-log_temperature)
    sim = sim.masked_fill(~valid[:, None, :], -math.inf)
    labels = torch.arange(seqlen, device=score.device).expand(bsz, seqlen)
    g2w = F.cross_entropy(sim.transpose(1, 2), labels, reduction="none")
    w2g = F.cross_entropy(sim, labels, reduction="none")
    per_word = torch.where(valid, 0.5 * (g2w + w2g), torch.zeros_like(g2w))
    return (per_word.sum(1) / valid.sum(1)).mean()
