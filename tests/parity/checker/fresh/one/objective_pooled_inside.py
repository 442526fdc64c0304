import torch
from torch import nn
import torch.nn.functional as F


class SparcObjective(nn.Module):
    """Both objectives from patch and token embeddings alone; global embeddings are their means."""

    def __init__(self, lambda_g=0.5, lambda_f=1.0):
        super().__init__()
        self.lambda_g, self.lambda_f = lambda_g, lambda_f

    @staticmethod
    def contrast(z):
        y = torch.arange(z.shape[-1], device=z.device)
        return 0.5 * (F.cross_entropy(z, y) + F.cross_entropy(z.T, y))

    def forward(self, v, t, mask, logit_scale):
        k = logit_scale.exp()
        g = self.contrast(k * F.normalize(v.mean(1), dim=-1) @ F.normalize(t.mean(1), dim=-1).T)
        f = []
        for vi, ti, mi in zip(v, t, mask):
            ti = ti[mi]
            s = ti @ vi.T
            lo, hi = s.amin(1, keepdim=True), s.amax(1, keepdim=True)
            s = (s - lo) / (hi - lo)
            s = s.masked_fill(s < 1 / len(vi), 0)
            c = s @ vi / s.sum(1, keepdim=True)
            f.append(self.contrast(k * F.normalize(c, dim=-1) @ F.normalize(ti, dim=-1).T))
        return self.lambda_g * g + self.lambda_f * torch.stack(f).mean()
