import torch
import torch.nn as nn
import torch.nn.functional as F
from typing import NamedTuple


class Out(NamedTuple):
    loss: torch.Tensor
    weights: torch.Tensor


class SparseGrouping(nn.Module):
    min_threshold = 0.015

    def forward(self, tokens, patches):
        sim = tokens @ patches.mT
        sim = sim - sim.amin(-1, keepdim=True)
        sim = sim / sim.amax(-1, keepdim=True)
        threshold = max(1.0 / patches.shape[1], self.min_threshold)
        sim = sim.masked_fill(sim < threshold, 0.0)
        return sim / sim.sum(-1, keepdim=True)


class FineGrainedLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.grouping = SparseGrouping()

    def forward(self, patches, tokens, mask, scale):
        weights = self.grouping(tokens, patches)
        c = F.normalize(weights @ patches, dim=-1)
        t = F.normalize(tokens, dim=-1)
        z = scale * c @ t.mT
        keep = mask.bool()
        zc, zt = z.masked_fill(~keep[:, None, :], -1e30), z.mT.masked_fill(~keep[:, None, :], -1e30)
        nll = zc.logsumexp(-1) + zt.logsumexp(-1) - 2 * z.diagonal(dim1=-2, dim2=-1)
        nll = nll.masked_fill(~keep, 0.0).sum(-1) / keep.sum(-1)
        return Out(nll.mean() / 2, weights)
