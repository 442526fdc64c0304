import torch
import torch.nn.functional as F


def fine_loss(v, t, mask, scale):
    """v (B,P,D), t (B,L,D), mask (B,L) bool, scale 1/tau"""
    s = torch.einsum("bld,bpd->blp", t, v)
    pad = ~mask[..., None]
    lo = s.masked_fill(pad, float("inf")).flatten(1).amin(1)[:, None, None]
    hi = s.masked_fill(pad, float("-inf")).flatten(1).amax(1)[:, None, None]
    s = (s - lo) / (hi - lo)
    s = torch.where(s >= 1 / v.shape[1], s, 0).masked_fill(pad, 0)
    c = F.normalize(s @ v, dim=-1)
    z = scale * c @ F.normalize(t, dim=-1).mT
    z = torch.stack([z, z.mT]).masked_fill(~mask[None, :, None], -1e9)
    nll = -z.log_softmax(-1).diagonal(dim1=-2, dim2=-1).mean(0)
    return ((nll * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
