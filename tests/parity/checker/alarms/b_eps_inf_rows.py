import torch
import torch.nn.functional as F


def loss(v, t, mask, scale):
    s = t @ v.mT
    off = ~mask[..., None]
    lo, hi = s.masked_fill(off, torch.inf).amin(-1, keepdim=True), s.masked_fill(off, -torch.inf).amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo + 1e-8)
    s = torch.where(s < 1 / v.shape[1], 0.0, s)
    c = F.normalize(s / (s.sum(-1, keepdim=True) + 1e-8) @ v, dim=-1)
    z = scale * c @ F.normalize(t, dim=-1).mT
    z = z.masked_fill(~mask[:, None, :], -torch.inf)
    zt = (scale * F.normalize(t, dim=-1) @ c.mT).masked_fill(~mask[:, None, :], -torch.inf)
    nll = -(z.log_softmax(-1) + zt.log_softmax(-1)).diagonal(dim1=1, dim2=2) / 2
    return ((nll * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
