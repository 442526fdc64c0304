import torch
import torch.nn.functional as F


def loss(v, t, mask, batch_size, scale):
    v, t, mask = (x.unflatten(0, (batch_size, -1)) for x in (v, t, mask))
    s = t @ v.mT
    lo, hi = torch.aminmax(s, dim=-1, keepdim=True)
    s = torch.clamp((s - lo) / (hi - lo), 0, 1)
    s = torch.where(s >= 1 / v.shape[1], s, 0.0)
    c = F.normalize(s @ v, dim=-1)
    z = scale * c @ F.normalize(t, dim=-1).mT
    allowed = mask[:, None] & mask[..., None]
    z = torch.where(allowed, z, -1e24)
    nll = z.logsumexp(1) + z.logsumexp(2) - 2 * z.diagonal(dim1=1, dim2=2)
    mask = mask.to(nll.dtype)
    weight = mask / mask.sum(1, keepdim=True).clamp(min=1) / (2 * batch_size)
    return (nll * weight).sum()
