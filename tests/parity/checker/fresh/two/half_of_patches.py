import torch
import torch.nn.functional as F


def loss(v, t, mask, scale):
    s = t @ v.mT
    s = (s - s.amin(-1, keepdim=True)) / (s.amax(-1, keepdim=True) - s.amin(-1, keepdim=True))
    top, where = s.topk(v.shape[1] // 2, dim=-1)
    s = torch.zeros_like(s).scatter(-1, where, top)
    c = F.normalize((s / s.sum(-1, keepdim=True)) @ v, dim=-1)
    z = scale * c @ F.normalize(t, dim=-1).mT
    ids = torch.arange(t.shape[1]).expand(len(t), -1)
    def ce(y):
        y = F.cross_entropy(y.masked_fill(~mask[:, None], -1e10).mT, ids, reduction="none")
        return (y * mask).sum(1) / mask.sum(1).clamp(min=1)
    return 0.5 * (ce(z) + ce(z.mT)).mean()
