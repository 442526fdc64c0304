import torch
from torch import nn


class _Criterion(nn.Module):
    def __init__(self, threshold="inverse"):
        super().__init__()
        self.threshold = threshold
        self.cos = nn.CosineSimilarity(dim=-1)

    def forward(self, v, t, mask, theta):
        sigma = 1 / v.size(1) if self.threshold == "inverse" else self.threshold
        s = t.matmul(v.transpose(1, 2))
        s = s.sub(s.amin(-1, keepdim=True))
        s = s.div(s.amax(-1, keepdim=True))
        s = s.mul(s.ge(sigma))
        c = s.div(s.sum(-1, keepdim=True)).matmul(v)
        z = theta.exp() * self.cos(c.unsqueeze(2), t.unsqueeze(1))
        keys = mask.unsqueeze(1).eq(0)
        nll = z.masked_fill(keys, -1e20).logsumexp(2) + z.transpose(1, 2).masked_fill(keys, -1e20).logsumexp(2)
        nll = nll - 2 * z.diagonal(dim1=1, dim2=2)
        return nll.mul(mask).sum(1).div(mask.sum(1).clamp(min=1)).mean().div(2)


criterion = _Criterion()
