import torch
import torch.nn.functional as F


def loss(v, t, mask, scale):
    s = t @ v.mT
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = torch.where(s >= 1 / v.shape[1], s, 0.0)
    c = F.normalize(s @ v, dim=-1)
    z = scale * c @ F.normalize(t, dim=-1).mT
    loss = 0
    for y in (z, z.mT):
        y = y.masked_fill(~mask[:, None, :], 0.0)
        nll = -y.log_softmax(-1).diagonal(dim1=1, dim2=2)
        loss = loss + (torch.where(mask, nll, 0.0).sum(1) / mask.sum(1).clamp(min=1)).mean()
    return loss
