import torch
from torch import nn


class FineGrained(nn.Module):
    """Local loss. Everything after the towers runs in at least fp32, autocast or not."""

    def __init__(self, tau=0.07):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(1.0 / tau).log())

    @property
    def inverse_temperature(self):
        return self.theta.exp()

    def align(self, regions, words):
        sim = words @ regions.mT
        lo, hi = sim.amin(-1, keepdim=True), sim.amax(-1, keepdim=True)
        flat = hi == lo
        sim = (sim - lo) / torch.where(flat, torch.ones_like(hi), hi - lo)
        sim = sim * (sim >= 1 / sim.shape[-1])
        sim = torch.where(flat, torch.ones_like(sim), sim)
        return sim / sim.sum(-1, keepdim=True)

    def forward(self, regions, words, keep):
        kind = torch.promote_types(regions.dtype, torch.float32)
        with torch.autocast("cpu", enabled=False):
            regions, words, keep = regions.to(kind), words.to(kind), keep.squeeze(-1) > 0.5
            c = self.align(regions, words) @ regions
            z = self.inverse_temperature * nn.functional.normalize(c, dim=-1) @ nn.functional.normalize(words, dim=-1).mT
            only = keep[:, None, :] | torch.eye(z.shape[1], dtype=torch.bool)
            both = [y.masked_fill(~only, float("-inf")).log_softmax(-1).diagonal(dim1=1, dim2=2) for y in (z, z.mT)]
            per = torch.where(keep, -0.5 * (both[0] + both[1]), 0.0)
            return (per.sum(1) / keep.sum(1).clamp(min=1)).mean()
