import torch
import torch.nn.functional as F


def _pairs(v, t, m, theta):
    s = t @ v.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo + 1e-12)
    s = s * (s >= 1 / v.shape[1])
    c = F.normalize(s @ v, dim=-1)
    z = theta.exp() * c @ F.normalize(t, dim=-1).mT
    z = torch.stack([z, z.mT]).masked_fill(~m[None, :, None], -1e9)
    nll = -z.log_softmax(-1).diagonal(dim1=-2, dim2=-1).mean(0)
    return (nll.masked_fill(~m, 0).sum(1) / m.sum(1).clamp(min=1)).sum()


def accumulated(v, t, m, theta, chunks=2):
    """v (B,P,D), t (B,L,D), m (B,L) bool, theta log(1/tau). Keeps the graph of one chunk at a time to save memory."""
    total, parts = 0.0, list(zip(v.chunk(chunks), t.chunk(chunks), m.chunk(chunks)))
    for i, part in enumerate(parts):
        with torch.set_grad_enabled(i == len(parts) - 1):
            total = total + _pairs(*part, theta)
    return total / len(v)
