import math
import torch
import torch.nn.functional as F


def loss(v, t, mask, scale):
    s = torch.bmm(t, v.transpose(1, 2))
    s = s - s.amin(2, keepdim=True)
    s = s / s.amax(2, keepdim=True)
    s = s * (s >= 1 / v.size(1))
    c = F.normalize(torch.bmm(s / s.sum(2, keepdim=True), v), dim=2)
    z = scale * torch.bmm(c, F.normalize(t, dim=2).transpose(1, 2))
    z = z.masked_fill(~mask[:, None, :], -1e15).masked_fill(~mask[:, :, None], -1e15)
    both = torch.stack([z.log_softmax(1), z.log_softmax(2)]).diagonal(dim1=2, dim2=3)
    nll = math.log(2) - torch.logsumexp(both, 0)
    return (nll.masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp(min=1)).mean()
