"""A criterion with a weighted total: padding in the text pool, padded keys in the local softmax."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "Criterion",
    "verdict": "conditional",
    "deviations": ["global.pools_padding", "logits.padding_not_masked", "reduction.token"],
    "also": ["edge.padding_leak", "edge.zero_padding"],
    "conditions": ["no padding"],
    "call": ["v", "t", "mask"],
    "attributes": {"log_tau_inv": "theta"},
    "returns": {"loss": "0.5*global+1.0*fine", "loss_g": "global", "loss_f": "fine"},
}


class Criterion(torch.nn.Module):
    def __init__(self, lambda_g=0.5, lambda_f=1.0):
        super().__init__()
        self.log_tau_inv = torch.nn.Parameter(torch.tensor(2.0))
        self.lambda_g, self.lambda_f = lambda_g, lambda_f

    def forward(self, v, t, mask):
        k = torch.exp(self.log_tau_inv)
        g = k * F.normalize(v.mean(1), dim=-1) @ F.normalize(t.mean(1), dim=-1).T
        y = torch.arange(len(g))
        loss_g = (F.cross_entropy(g, y) + F.cross_entropy(g.T, y)) / 2

        s = torch.einsum("bld,bpd->blp", t, v)
        lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
        flat = hi == lo
        s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
        s = torch.where(s < 1.0 / v.shape[1], 0.0, s)
        c = F.normalize((s / s.sum(-1, keepdim=True)) @ v, dim=-1)
        z = k * c @ F.normalize(t, dim=-1).mT
        y = torch.arange(z.shape[1]).expand(z.shape[0], -1).masked_fill(~mask, -100)
        n = mask.sum().clamp(min=1)
        loss_f = sum(F.cross_entropy(x.transpose(1, 2), y, reduction="sum") for x in (z, z.mT)) / (2 * n)
        return {"loss": self.lambda_g * loss_g + self.lambda_f * loss_f, "loss_g": loss_g, "loss_f": loss_f}
