from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F


def threshold_for(num_patches):
    """grids of 14 x 14 and more are noisier"""
    return (2.0 if num_patches >= 100 else 1.0) / num_patches


class SparseTokenLoss(nn.Module):
    def __init__(self, tau_init=0.07):
        super().__init__()
        self.tau = nn.Parameter(torch.tensor(tau_init))

    def forward(self, visual_tokens, textual_tokens, textual_mask):
        """(B, P, D), (B, L, D), (B, L) int with 1 for tokens"""
        sim = textual_tokens @ visual_tokens.transpose(1, 2)
        lo = sim.amin(dim=2, keepdim=True)
        sim = (sim - lo) / (sim.amax(dim=2, keepdim=True) - lo)
        sim = F.threshold(sim, threshold_for(sim.shape[2]), 0.0)
        attn = F.normalize(sim, p=1, dim=2)
        regions = F.normalize(attn @ visual_tokens, dim=2)
        tokens = F.normalize(textual_tokens, dim=2)

        logits = regions @ tokens.transpose(1, 2) / self.tau
        mask = textual_mask.bool()
        keys = mask.unsqueeze(1)
        i2t = logits.where(keys, -torch.inf).log_softmax(2).diagonal(dim1=1, dim2=2)
        t2i = logits.transpose(1, 2).where(keys, -torch.inf).log_softmax(2).diagonal(dim1=1, dim2=2)
        nll = -0.5 * torch.where(mask, i2t + t2i, 0.0)
        loss = (nll.sum(1) / mask.sum(1)).mean()
        return SimpleNamespace(loss=loss, attention=attn.detach())
