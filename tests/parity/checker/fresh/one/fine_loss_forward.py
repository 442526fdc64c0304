import torch
import torch.nn.functional as F


class FineLoss(torch.nn.Module):
    def forward(self, v, t, mask, theta):
        m = mask.unsqueeze(-1).to(t.dtype)
        s = (t @ v.mT)
        lo = s.amin(-1, keepdim=True)
        s = (s - lo) / (s.amax(-1, keepdim=True) - lo).clamp(min=1e-9)
        s = s * (s >= 1 / v.size(1))
        c = s @ v / s.sum(-1, keepdim=True).clamp(min=1e-9)
        c = F.normalize(c, dim=-1) * m
        u = F.normalize(t, dim=-1) * m
        z = theta.exp() * c @ u.mT
        lp1, lp2 = z.log_softmax(2), z.log_softmax(1)
        d = (lp1 + lp2).diagonal(dim1=1, dim2=2) * mask
        return -(d.sum(1) / (2 * mask.sum(1).clamp(min=1))).mean()
