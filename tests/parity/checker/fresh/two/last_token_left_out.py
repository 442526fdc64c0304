import torch
import torch.nn.functional as F


def loss(v, t, lengths, theta):
    # positions 1 .. L_i - 1 hold words
    pos = torch.arange(1, t.shape[1] + 1)
    mask = pos[None, :] < lengths[:, None]
    s = t @ v.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo)
    s = s.masked_fill(s < 1 / v.shape[1], 0)
    c = F.normalize((s / s.sum(-1, keepdim=True)) @ v, dim=-1)
    z = theta.exp() * torch.einsum("bjd,bkd->bjk", c, F.normalize(t, dim=-1))
    z = z.masked_fill(~(mask[:, None] & mask[:, :, None]), -1e18)
    tok = (z.logsumexp(1) + z.logsumexp(2) - 2 * z.diagonal(dim1=1, dim2=2)).masked_fill(~mask, 0)
    return (tok.sum(1) / mask.sum(1).clamp(min=1)).mean() / 2
