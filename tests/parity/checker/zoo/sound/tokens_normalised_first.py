"""Tokens are put on the sphere at the start and used so in both places."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "finegrained_contrastive",
    "verdict": "eq6",
    "harmless": ["similarity.tokens_normalised"],
    "call": ["patch_emb=v", "token_emb=t", "pad_mask=padding", "temperature=tau"],
}


def finegrained_contrastive(*, patch_emb, token_emb, pad_mask, temperature):
    tokens = F.normalize(token_emb, dim=-1)
    sims = tokens @ patch_emb.mT
    low, high = sims.amin(-1, keepdim=True), sims.amax(-1, keepdim=True)
    level = low == high
    unit_sims = torch.where(level, 1.0, (sims - low) / torch.where(level, 1.0, high - low))
    unit_sims = torch.where(unit_sims >= 1 / patch_emb.shape[1], unit_sims, 0.0)
    mix = unit_sims / unit_sims.sum(-1, keepdim=True)
    vis = F.normalize(mix @ patch_emb, dim=-1)
    total = patch_emb.new_zeros(())
    for i in range(len(tokens)):
        keep = ~pad_mask[i]
        if keep.sum() == 0:
            continue
        logits = vis[i][keep] @ tokens[i][keep].T / temperature
        labels = torch.arange(logits.shape[0])
        total = total + 0.5 * F.cross_entropy(logits, labels) + 0.5 * F.cross_entropy(logits.T, labels)
    return total / len(tokens)
