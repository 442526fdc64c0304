import torch
import torch.nn.functional as F

BLOCK = 32


def fine_loss(v, t, mask, scale):
    """The (L,L) map is made in blocks on the diagonal, to save memory on long captions."""
    s = t @ v.mT
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = s * (s >= 1 / v.shape[1])
    c, u = F.normalize(s @ v, dim=-1), F.normalize(t, dim=-1)
    total = v.new_zeros(len(v))
    for start in range(0, t.shape[1], BLOCK):
        part = slice(start, start + BLOCK)
        m = mask[:, part]
        z = scale * c[:, part] @ u[:, part].mT
        cols = ~m[:, None]
        nll = z.masked_fill(cols, -1e30).logsumexp(-1) + z.mT.masked_fill(cols, -1e30).logsumexp(-1) - 2 * z.diagonal(dim1=1, dim2=2)
        total = total + nll.masked_fill(~m, 0).sum(1) / 2
    return (total / mask.sum(1)).mean()
