import torch
import torch.nn.functional as F


def info_nce(query, keys, mask, tau):
    z = query @ keys.mT / tau
    z = z.masked_fill(~mask[:, None, :], torch.finfo(z.dtype).min)
    nll = -z.log_softmax(-1).diagonal(dim1=1, dim2=2)
    return (nll.masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp(min=1)).mean()


def bidirectional_fine(v, t, mask, tau):
    """v (B,P,D), t (B,L,D), mask (B,L) bool, tau. Keys of each direction are held fixed, as in a queue."""
    s = t @ v.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo)
    s = torch.where(s < 1 / v.shape[1], 0, s)
    c = F.normalize(s / s.sum(-1, keepdim=True) @ v, dim=-1)
    t = F.normalize(t, dim=-1)
    return (info_nce(c, t.detach(), mask, tau) + info_nce(t, c.detach(), mask, tau)) / 2
