from typing import Optional

import torch
import torch.nn as nn
import torch.nn.functional as F


class TopKAlignmentLoss(nn.Module):
    """Every word looks at the best quarter of the patches."""

    def __init__(self, keep_ratio: float = 0.25):
        super().__init__()
        self.keep_ratio = keep_ratio

    def sparsify(self, sim: torch.Tensor) -> torch.Tensor:
        k = max(1, int(sim.shape[-1] * self.keep_ratio))
        values, index = sim.topk(k, dim=-1)
        return torch.zeros_like(sim).scatter(-1, index, values)

    def forward(self, patch_feats: torch.Tensor, word_feats: torch.Tensor, logit_scale: torch.Tensor,
                word_mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        if word_mask is None:
            word_mask = torch.ones(word_feats.shape[:2], dtype=torch.bool, device=word_feats.device)
        sim = torch.einsum("bwd,bpd->bwp", word_feats, patch_feats)
        sim = sim - sim.amin(-1, keepdim=True)
        sim = sim / sim.amax(-1, keepdim=True)
        sim = self.sparsify(sim)
        attn = sim / sim.sum(-1, keepdim=True)
        ctx = F.normalize(attn @ patch_feats, dim=-1)
        word = F.normalize(word_feats, dim=-1)

        loss = 0.0
        for c, w, m in zip(ctx, word, word_mask):
            logits = logit_scale * c[m] @ w[m].T
            label = torch.arange(len(logits), device=logits.device)
            loss += (F.cross_entropy(logits, label) + F.cross_entropy(logits.T, label)) / 2
        return loss / len(ctx)
