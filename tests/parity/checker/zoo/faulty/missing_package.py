"""Needs a package that nobody has."""

import torch
from in_house_ops import fused_sparse_attention

EXPECT = {
    "target": "FusedLoss",
    "verdict": "cannot_run",
    "call": ["v", "t", "mask", "scale"],
}


class FusedLoss(torch.nn.Module):
    def forward(self, v, t, mask, scale):
        return fused_sparse_attention(v, t, mask, scale).mean()
