import torch
from torch import nn
import torch.nn.functional as F


class SparseAlign(nn.Module):
    """Computes the alignment weights; they act as a (stop-gradient) teacher."""

    @torch.no_grad()
    def forward(self, q, k):
        s = q @ k.mT
        lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
        s = (s - lo) / (hi - lo)
        s[s < 1 / k.size(1)] = 0.
        return s / s.sum(-1, keepdim=True)


class LocalLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.align = SparseAlign()

    def forward(self, k, q, mask, scale):
        c = F.normalize(self.align(q, k) @ k, dim=-1)
        q = F.normalize(q, dim=-1)
        z = scale * c @ q.mT
        z1 = z.masked_fill(mask[:, None] == 0, torch.finfo(z.dtype).min)
        z2 = z.masked_fill(mask[:, :, None] == 0, torch.finfo(z.dtype).min)
        l = z1.logsumexp(-1) + z2.logsumexp(-2) - 2 * z.diagonal(dim1=-2, dim2=-1)
        return (l.masked_fill(mask == 0, 0) / 2).mean()
