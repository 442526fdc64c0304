import torch
import torch.nn.functional as F


def half(moving, fixed, keep, scale):
    z = (scale * moving @ fixed.detach().mT).masked_fill(~keep[:, None], float("-inf"))
    nll = z.logsumexp(-1) - (moving * fixed.detach()).sum(-1) * scale
    return (nll * keep).sum(1) / keep.sum(1)


def symmetric_stop_grad_loss(v, t, keep, tau):
    """SimSiam style, one side stands still"""
    s = t @ v.mT
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = s * (s >= 1 / v.shape[-2])
    c, t = F.normalize(s @ v, dim=-1), F.normalize(t, dim=-1)
    return (half(c, t, keep, 1 / tau) + half(t, c, keep, 1 / tau)).mean() / 2
