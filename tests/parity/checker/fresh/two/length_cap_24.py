import torch
import torch.nn.functional as F


def local_loss(v, t, pad, theta):
    mask, scale = ~pad, theta.exp()
    s = torch.bmm(t, v.transpose(1, 2))
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = s * (s >= 1 / s.shape[-1])
    c = torch.einsum('blp,bpd->bld', s / s.sum(2, keepdim=True), v)
    c, w = F.normalize(c, dim=-1), F.normalize(t, dim=-1)
    z = torch.einsum('bjd,bkd->bjk', c, w) * scale
    y = z.transpose(1, 2)
    z = z.masked_fill(~mask[:, None, :], -torch.inf)
    y = y.masked_fill(~mask[:, None, :], -torch.inf)
    nll = -(z.log_softmax(-1) + y.log_softmax(-1)).diagonal(dim1=1, dim2=2)
    per = torch.where(mask, nll, 0.0).sum(1) / mask.sum(1).clamp(1, 24)
    return per.mean() / 2
