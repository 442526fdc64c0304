import torch
import torch.nn.functional as F


def loss(v, t, mask, scale):
    v, t, scale = v.float(), t.float(), scale.float()
    s = t @ v.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = hi == lo
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s = torch.where(s < 1 / v.shape[1], 0.0, s)
    c = F.normalize(s / s.sum(-1, keepdim=True) @ v, dim=-1)
    z = scale * c @ F.normalize(t, dim=-1).mT
    z = z.masked_fill(~(mask[:, :, None] & mask[:, None, :]), torch.finfo(z.dtype).min)
    nll = -(z.log_softmax(1) + z.log_softmax(2)).diagonal(dim1=1, dim2=2) / 2
    return (torch.where(mask, nll, 0.0).sum(1) / mask.sum(1).clamp(min=1)).mean()
