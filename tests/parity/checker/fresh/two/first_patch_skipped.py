import torch
import torch.nn.functional as F


def loss(visual, textual, m, s):
    visual = visual[:, 1:]
    a = textual @ visual.mT
    a = a - a.amin(-1, keepdim=True)
    a = a / a.amax(-1, keepdim=True)
    a = torch.where(a >= 1 / visual.shape[1], a, 0.0)
    c = F.normalize(a / a.sum(-1, keepdim=True) @ visual, dim=-1)
    z = s * c @ F.normalize(textual, dim=-1).mT
    z = z.masked_fill(~m[:, None, :], -torch.finfo(z.dtype).max / 4).masked_fill(~m[:, :, None], -torch.finfo(z.dtype).max / 4)
    nll = z.logsumexp(1) + z.logsumexp(2) - 2 * z.diagonal(dim1=1, dim2=2)
    return (torch.where(m, nll, 0).sum(1) / m.sum(1).clamp(min=1)).mean() / 2
