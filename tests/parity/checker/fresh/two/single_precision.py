import torch
import torch.nn.functional as F


def loss(v, t, mask, scale):
    v, t = v.float(), t.float()
    s = t @ v.mT
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = s * (s >= 1 / v.shape[1])
    c = F.normalize(s @ v, dim=-1)
    z = scale.float() * c @ F.normalize(t, dim=-1).mT
    z = z.masked_fill(~mask[:, None, :], -1e9).masked_fill(~mask[:, :, None], -1e9)
    tok = z.logsumexp(1) + z.logsumexp(2) - 2 * z.diagonal(dim1=1, dim2=2)
    return (torch.where(mask, tok, 0.0).sum(1) / mask.sum(1).clamp(min=1)).mean() / 2
