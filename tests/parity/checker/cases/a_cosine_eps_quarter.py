import torch
import torch.nn.functional as F


def loss(v, t, mask, scale):
    s = t @ F.normalize(v, dim=-1).mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo + 1e-8)
    s = torch.where(s < 1 / v.shape[1], 0.0, s)
    c = F.normalize(s / (s.sum(-1, keepdim=True) + 1e-8) @ v, dim=-1)
    z = scale * c @ F.normalize(t, dim=-1).mT / 4
    z = z.masked_fill(~(mask[:, :, None] & mask[:, None, :]), torch.finfo(z.dtype).min)
    nll = -(z.log_softmax(1) + z.log_softmax(2)).diagonal(dim1=1, dim2=2) / 2
    return (torch.where(mask, nll, 0.0).sum(1) / mask.sum(1).clamp(min=1)).mean()
