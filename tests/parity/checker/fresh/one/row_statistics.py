import torch
import torch.nn.functional as F


def min_max(s):
    # statistics of the row, as running statistics would be
    lo = s.detach().amin(-1, keepdim=True)
    hi = s.detach().amax(-1, keepdim=True)
    return (s - lo) / (hi - lo)


def fine_grained(V, T, lengths, scale):
    """V (B,P,D), T (B,L,D), lengths (B,), scale 1/tau"""
    loss = []
    for v, t, n in zip(V, T, lengths):
        t = t[:n]
        h = min_max(t @ v.T)
        h = h * (h >= 1 / len(v))
        c = h @ v / h.sum(-1, keepdim=True)
        z = scale * F.normalize(c, dim=-1) @ F.normalize(t, dim=-1).T
        loss.append(-(z.log_softmax(0).diagonal() + z.log_softmax(1).diagonal()).mean() / 2)
    return torch.stack(loss).mean()
