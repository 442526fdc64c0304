"""relu(s_hat - sigma): what passes the threshold is also lowered by it."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "SoftThreshold",
    "verdict": "unexplained",
    "stage": "threshold",
    "call": ["v", "t", "mask_float", "scale"],
}


class SoftThreshold(torch.nn.Module):
    def forward(self, v, t, m, scale):
        s = t @ v.mT
        lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
        flat = lo == hi
        s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
        s = F.relu(s - 1 / v.shape[1])
        a = s / s.sum(-1, keepdim=True)
        c, u = F.normalize(a @ v, dim=-1), F.normalize(t, dim=-1)
        z = scale * c @ u.mT - (1 - m)[:, None, :] * 1e9
        y = scale * u @ c.mT - (1 - m)[:, None, :] * 1e9
        ce = z.logsumexp(-1) + y.logsumexp(-1) - 2 * scale * (c * u).sum(-1)
        return ((ce * m).sum(1) / m.sum(1).clamp(min=1)).mean() / 2
