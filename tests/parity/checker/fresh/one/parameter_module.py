import torch
from torch import nn
import torch.nn.functional as F


class SparcFineGrained(nn.Module):
    def __init__(self, init=0.07):
        super().__init__()
        self.log_inv_tau = nn.Parameter(torch.tensor(1.0 / init).log())

    def forward(self, v, t, mask):
        """v (B,P,D), t (B,L,D), mask (B,L) bool"""
        s = t @ v.mT
        lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
        s = (s - lo) / (hi - lo + 1e-10)
        s = torch.where(s >= 1 / v.shape[1], s, 0)
        c = F.normalize(s @ v, dim=-1)
        z = self.log_inv_tau * c @ F.normalize(t, dim=-1).mT
        z = torch.cat([z, z.mT]).masked_fill(~mask.repeat(2, 1)[:, None], -torch.inf)
        nll = -z.log_softmax(-1).diagonal(dim1=1, dim2=2).masked_fill(~mask.repeat(2, 1), 0)
        return (nll.sum(1) / mask.sum(1).repeat(2).clamp(min=1)).mean()
