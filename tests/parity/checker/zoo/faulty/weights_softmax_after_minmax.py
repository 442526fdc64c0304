"""min-max first, then softmax instead of dividing by the sum."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "Criterion",
    "verdict": "explained",
    "deviations": ["weights.softmax_minmax=s_hat"],
    "call": ["t", "v", "mask_int", "tau"],
}


class Criterion(torch.nn.Module):
    def forward(self, txt, img, txt_mask, temp):
        keep = txt_mask.bool()
        sim = txt @ img.transpose(-1, -2)
        lo, hi = sim.amin(-1, keepdim=True), sim.amax(-1, keepdim=True)
        rng = hi - lo
        sim = (sim - lo) / torch.where(rng == 0, torch.ones_like(rng), rng)
        weights = sim.softmax(dim=-1)
        # flat rows: all zero before the softmax, so even weights, but no gradient either
        weights = torch.where(rng == 0, torch.full_like(weights, 1 / sim.shape[-1]), weights)
        g = F.normalize(weights @ img, dim=-1)
        w = F.normalize(txt, dim=-1)
        z = (g @ w.transpose(-1, -2)) / temp
        block = ~keep[:, None, :]
        nll = F.log_softmax(z.masked_fill(block, -1e9), -1) + F.log_softmax(z.mT.masked_fill(block, -1e9), -1)
        nll = -torch.diagonal(nll, dim1=-2, dim2=-1) * keep
        return (nll.sum(-1) / keep.sum(-1).clamp(min=1)).mean() * 0.5
