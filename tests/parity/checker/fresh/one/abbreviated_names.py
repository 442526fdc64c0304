import torch
import torch.nn.functional as F


def local_loss(img, txt, msk, scale, thr=0.5):
    """img (B,P,D), txt (B,L,D), msk (B,L) int, scale 1/tau"""
    a = torch.einsum("bld,bpd->blp", txt, img)
    a = (a - a.amin(-1, True)) / (a.amax(-1, True) - a.amin(-1, True) + 1e-9)
    a = a * (a > thr)
    g = torch.einsum("blp,bpd->bld", a / a.sum(-1, True), img)
    z = scale * F.normalize(g, dim=-1) @ F.normalize(txt, dim=-1).mT
    d = torch.diagonal(z, dim1=1, dim2=2)
    nll = z.logsumexp(1) / 2 + z.logsumexp(2) / 2 - d
    return ((nll * msk).sum(-1) / msk.sum(-1)).mean()
