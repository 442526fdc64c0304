import torch
import torch.nn.functional as F


def loss(tokens, patches, mask, tau):
    s = tokens @ patches.mT
    s = s - s.amin(-1, keepdim=True)
    s = torch.where(s * patches.shape[1] >= s.amax(-1, keepdim=True), s, 0.0)
    c = F.normalize(s @ patches, dim=-1)
    u = F.normalize(tokens, dim=-1)
    z = torch.einsum("bjd,bkd->bjk", c, u) / tau
    z = z.masked_fill(~mask[:, None, :], -1e28).masked_fill(~mask[:, :, None], -1e28)
    lp = (z.log_softmax(1) + z.log_softmax(2)).diagonal(dim1=1, dim2=2)
    return -((lp * mask).sum(1) / mask.sum(1).clamp(min=1)).mean() / 2
