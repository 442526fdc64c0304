import torch
import torch.nn.functional as F


def direction(a, b, m, k):
    z = k * torch.einsum("bid,bjd->bij", a, b)
    z = z.masked_fill(~m[:, None, :], float("-inf"))
    y = torch.arange(z.shape[1]).expand(z.shape[:2])
    ce = F.cross_entropy(z.permute(0, 2, 1), y, reduction="none")
    return torch.where(m, ce, 0.0).sum(1) / m.sum(1)


def sparc_fine(patch, token, m, k):
    """patch (B,P,D), token (B,L,D), m (B,L) bool, k = 1/tau"""
    s = torch.einsum("bld,bpd->blp", token, patch)
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = torch.where(s < 1 / patch.shape[1], 0.0, s)
    g = F.normalize(torch.einsum("blp,bpd->bld", s / s.sum(-1, keepdim=True), patch), dim=-1)
    t = F.normalize(token, dim=-1)
    loss_gt = direction(g, t, m, k)
    loss_tg = direction(g, t, m, k)
    return (0.5 * (loss_gt + loss_tg)).mean()
