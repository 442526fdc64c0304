import torch
import torch.nn.functional as F


def sparc_local(v, t, mask, scale):
    """v (B,P,D), t (B,L,D), mask (B,L) bool, scale 1/tau. Sum over the words of a caption, mean over captions."""
    s = t @ v.mT
    lo = s.amin(-1, keepdim=True)
    s = (s - lo) / (s.amax(-1, keepdim=True) - lo)
    s = torch.where(s < 1 / v.shape[1], 0, s)
    c = scale * F.normalize(s @ v, dim=-1)
    t = scale * F.normalize(t, dim=-1)
    logits = torch.bmm(c, t.mT)
    target = torch.arange(t.shape[1]).expand(mask.shape)
    total = 0
    for z in (logits, logits.mT):
        z = z.masked_fill(~mask[:, None, :], -1e9)
        total = total + F.cross_entropy(z.mT, target, reduction="none").masked_fill(~mask, 0).sum()
    return total / 2 / len(v)
