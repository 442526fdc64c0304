import torch
from torch.nn.functional import normalize


def contrast(v, t, keep, inv_tau):
    s = t @ v.mT
    s = (s - s.amin(-1, keepdim=True)) / (s.amax(-1, keepdim=True) - s.amin(-1, keepdim=True))
    s = s * (s >= 1 / v.shape[1])
    w = torch.log1p(10 * s)               # diminishing returns
    w = w / w.sum(-1, keepdim=True)
    z = inv_tau * normalize(w @ v, dim=-1) @ normalize(t, dim=-1).mT
    z = z.masked_fill(~keep[:, None], float("-inf")), z.mT.masked_fill(~keep[:, None], float("-inf"))
    z = [torch.where(keep[..., None], x, 0.0) for x in z]
    nll = sum(torch.logsumexp(x, -1) - x.diagonal(dim1=1, dim2=2) for x in z)
    return (torch.where(keep, nll, 0).sum(1) / keep.sum(1)).mean() / 2
