"""Negatives from the whole batch, each caption weighing the same."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "ContrastiveTokens",
    "verdict": "conditional",
    "deviations": ["logits.batch_negatives"],
    "conditions": ["B = 1"],
    "call": ["v", "t", "padding"],
    "attributes": {"logit_scale": "theta"},
}


class ContrastiveTokens(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.3))

    def forward(self, v, t, pad):
        b, n, d = t.shape
        sim = torch.bmm(t, v.mT)
        low, high = sim.amin(2, keepdim=True), sim.amax(2, keepdim=True)
        sim = torch.where(low == high, 1.0, (sim - low) / torch.where(low == high, 1.0, high - low))
        sim = sim * (sim >= 1 / v.shape[1])
        c = F.normalize(torch.bmm(sim / sim.sum(2, keepdim=True), v), dim=2).reshape(b * n, d)
        u = F.normalize(t, dim=2).reshape(b * n, d)
        z = self.logit_scale.exp() * c @ u.T
        hide = pad.reshape(1, -1)
        lowest = torch.finfo(z.dtype).min
        ce = -(z.masked_fill(hide, lowest).log_softmax(1) + z.T.masked_fill(hide, lowest).log_softmax(1)).diagonal()
        ce = ce.reshape(b, n).masked_fill(pad, 0)
        return (ce.sum(1) / (~pad).sum(1).clamp(min=1)).mean() / 2
