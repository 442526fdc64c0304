import torch
import torch.nn.functional as F

TRAINED = 24


def loss(v, t, mask, scale):
    head, tail = t[:, :TRAINED], t[:, TRAINED:]
    t = torch.cat([head, tail.detach()], dim=1)      # long captions: truncated back-propagation
    s = t @ v.mT
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = torch.where(s >= 1 / v.shape[1], s, 0.0)
    z = scale * F.normalize(s @ v, dim=-1) @ F.normalize(t, dim=-1).mT
    z = z.masked_fill(~(mask[:, None] & mask[..., None]), -1e20)
    nll = z.logsumexp(1) + z.logsumexp(2) - 2 * z.diagonal(dim1=1, dim2=2)
    return (nll.masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp(min=1)).mean() / 2
