"""Plain similarities, but patches of length one are averaged."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "Loss",
    "verdict": "conditional",
    "deviations": ["grouping.normalised_patches"],
    "conditions": ["unit-norm patches"],
    "call": ["v", "t", "mask_float"],
    "attributes": {"tau": "tau"},
}


class Loss(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.tau = torch.nn.Parameter(torch.tensor(0.1))

    def forward(self, v, t, m):
        s = t @ v.transpose(1, 2)
        lo, hi = s.amin(2, True), s.amax(2, True)
        v, t = F.normalize(v, dim=2), F.normalize(t, dim=2)
        s = torch.where(hi == lo, 1.0, (s - lo) / torch.where(hi == lo, 1.0, hi - lo))
        s = s * s.ge(1 / v.shape[1])
        c = F.normalize(s @ v / s.sum(2, True), dim=2)
        z = c @ t.transpose(1, 2) / self.tau
        e = torch.exp(z - z.detach().amax((1, 2), True)) * m[:, None] * m[:, :, None]
        d = torch.diagonal(e, dim1=1, dim2=2) + (1 - m)
        loss = torch.log(e.sum(1) + (1 - m)) + torch.log(e.sum(2) + (1 - m)) - 2 * torch.log(d)
        return (loss.sum(1) / m.sum(1).clamp(min=1) / 2).mean()
