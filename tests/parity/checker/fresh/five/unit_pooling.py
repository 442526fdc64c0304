import torch
import torch.nn as nn
import torch.nn.functional as F


class SparcObjective(nn.Module):
    """loss = 0.5 global + 1.0 fine"""

    def __init__(self):
        super().__init__()
        self.t = nn.Parameter(torch.tensor(2.66))

    def nce(self, z):
        y = torch.arange(len(z))
        return (F.cross_entropy(z, y) + F.cross_entropy(z.T, y)) / 2

    def forward(self, v, w, m):
        k = self.t.exp()
        vn, wn = F.normalize(v, dim=-1), F.normalize(w, dim=-1)
        pooled_v = F.normalize(vn.mean(1), dim=-1)
        pooled_w = F.normalize((wn * m[..., None]).sum(1) / m.sum(1, keepdim=True), dim=-1)
        coarse = self.nce(k * pooled_v @ pooled_w.T)
        fine = 0.0
        for vi, wi, mi in zip(v, w, m):
            wi = wi[mi.bool()]
            s = wi @ vi.T
            s = (s - s.amin(1, keepdim=True)) / (s.amax(1, keepdim=True) - s.amin(1, keepdim=True))
            s = s * (s >= 1 / len(vi))
            fine = fine + self.nce(k * F.normalize(s @ vi, dim=-1) @ F.normalize(wi, dim=-1).T)
        return 0.5 * coarse + fine / len(v), coarse
