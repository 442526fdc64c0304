import torch
import torch.nn.functional as F


def ranks(s):
    """0 for the smallest, 1 for the largest: robust against outliers"""
    return s.argsort(-1).argsort(-1).to(s.dtype) / (s.shape[-1] - 1)


def fine_loss(v, t, mask, scale):
    h = ranks(t @ v.mT)
    h = h * (h >= 1 / v.shape[1])
    c = F.normalize(h @ v / h.sum(-1, keepdim=True), dim=-1)
    z = scale * c @ F.normalize(t, dim=-1).mT
    cols = ~mask[:, None]
    nll = z.masked_fill(cols, -1e30).logsumexp(-1) + z.mT.masked_fill(cols, -1e30).logsumexp(-1) - 2 * z.diagonal(dim1=1, dim2=2)
    return (nll.masked_fill(~mask, 0).sum(1) / mask.sum(1) / 2).mean()
