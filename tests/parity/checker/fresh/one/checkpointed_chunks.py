import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


def _chunk(v, t, m, k):
    s = torch.matmul(t, v.mT)
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo + 1e-12)
    s = s * (s >= 1 / v.shape[1])
    c = F.normalize(torch.matmul(s / (s.sum(-1, keepdim=True) + 1e-12), v), dim=-1)
    z = k * torch.matmul(c, F.normalize(t, dim=-1).mT)
    far = torch.finfo(z.dtype).min
    zz = torch.stack([z, z.mT]).masked_fill(~m[None, :, None, :], far)
    nll = zz.logsumexp(-1) - z.diagonal(dim1=-2, dim2=-1)
    nll = nll.mean(0).masked_fill(~m, 0)
    return (nll.sum(-1) / m.sum(-1).clamp(min=1)).sum()


def local_loss(visual, textual, valid, inv_temp, chunk=2):
    """visual (B,P,D), textual (B,L,D), valid (B,L) bool; processes `chunk` pairs at a time and recomputes in backward."""
    pieces = zip(visual.split(chunk), textual.split(chunk), valid.split(chunk))
    return sum(checkpoint(_chunk, v, t, m, inv_temp, use_reentrant=False) for v, t, m in pieces) / len(visual)
