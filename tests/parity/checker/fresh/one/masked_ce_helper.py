import torch


def masked_ce(logits, m):
    logits = logits + (1 - m)[:, None, :] * -1e9
    logp = logits - torch.logsumexp(logits, -1, keepdim=True)
    return -torch.diagonal(logp, dim1=-2, dim2=-1)


def fine_loss(v, t, m, tau):
    """v (B,P,D), t (B,L,D), m (B,L) float, tau"""
    s = torch.matmul(t, v.mT)
    s = s - s.min(-1, keepdim=True)[0]
    s = s / (s.max(-1, keepdim=True)[0] + 1e-12)
    s = s * (s >= 1 / v.shape[1]).type_as(s)
    a = s / (s.sum(-1, keepdim=True) + 1e-12)
    c = torch.matmul(a, v)
    z = torch.matmul(c, t.mT) / tau / t.shape[-1] ** 0.5
    nll = 0.5 * (masked_ce(z, m) + masked_ce(z.mT, m)) * m
    return (nll.sum(-1) / m.sum(-1).clamp(min=1)).mean()
