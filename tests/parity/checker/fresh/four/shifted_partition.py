import torch
import torch.nn.functional as F


def log_partition(z, scale, keys):
    # cosines are at most 1, so scale bounds every logit and no maximum is needed
    return scale + torch.log((torch.exp(z - scale) * keys).sum(-1) + 1e-20)


def loss(v, t, mask, scale):
    m = mask.to(v.dtype)
    s = torch.bmm(t, v.mT)
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = s * (s >= 1 / v.shape[1])
    z = scale * torch.bmm(F.normalize(s @ v, dim=-1), F.normalize(t, dim=-1).mT)
    keys = m[:, None, :]
    nll = log_partition(z, scale, keys) + log_partition(z.mT, scale, keys) - 2 * z.diagonal(dim1=1, dim2=2)
    return ((nll * m).sum(1) / m.sum(1).clamp(min=1)).mean() / 2
