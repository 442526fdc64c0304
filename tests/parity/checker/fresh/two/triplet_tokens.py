import torch
import torch.nn.functional as F


def hinge_loss(v, t, mask, scale, margin=0.2):
    s = t @ v.mT
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = torch.where(s >= 1 / v.shape[1], s, 0.0)
    cos = F.normalize(s @ v, dim=-1) @ F.normalize(t, dim=-1).mT
    off = mask[:, :, None] & mask[:, None, :] & ~torch.eye(t.shape[1], dtype=torch.bool)
    per = 0
    for x in (cos, cos.mT):
        gap = F.relu(margin + x - x.diagonal(dim1=1, dim2=2)[..., None])
        per = per + torch.where(off, gap, 0.0).sum((1, 2))
    return scale * (per / mask.sum(1).clamp(min=1)).mean() / 2
