import torch
import torch.nn.functional as F


def masked_logsumexp(z, mask, dim):
    z = z.masked_fill(~mask, -torch.inf)
    top = z.amax(dim, keepdim=True).detach()
    top = torch.where(torch.isfinite(top), top, torch.zeros_like(top))
    total = (z - top).exp().sum(dim)
    return top.squeeze(dim) + torch.where(total > 0, total, torch.ones_like(total)).log()


def fgc(x_img, x_txt, m, tau):
    """x_img (B,P,D), x_txt (B,L,D), m (B,L) bool, tau scalar."""
    s = x_txt @ x_img.mT
    # positive factors of a row drop out in the cosine below, so they need no graph
    low = s.amin(-1, keepdim=True)
    span = (s.amax(-1, keepdim=True) - low).detach()
    s = torch.where(span > 0, (s - low) / torch.where(span > 0, span, 1), torch.ones_like(s))
    s = s * (s >= 1 / s.shape[-1]).detach()
    flat = span <= 0
    s = torch.where(flat, torch.ones_like(s), s)
    a = s / s.sum(-1, keepdim=True).detach()
    g = F.normalize(a @ x_img, dim=-1)
    w = F.normalize(x_txt, dim=-1)
    z = g @ w.mT / tau
    d = z.diagonal(dim1=1, dim2=2)
    nll = masked_logsumexp(z, m[:, None, :].expand_as(z), 2) + masked_logsumexp(z, m[:, :, None].expand_as(z), 1) - 2 * d
    nll = torch.where(m, nll, torch.zeros_like(nll))
    return (0.5 * nll.sum(1) / m.sum(1).clamp(min=1)).mean()
