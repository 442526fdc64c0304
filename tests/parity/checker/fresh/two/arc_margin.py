import torch
import torch.nn.functional as F


class MarginLoss(torch.nn.Module):
    def __init__(self, margin=0.1):
        super().__init__()
        self.margin = margin

    def forward(self, v, t, mask, scale):
        n = t.shape[1]
        s = t @ v.mT
        s = s - s.amin(-1, keepdim=True)
        s = s / s.amax(-1, keepdim=True)
        s = s.masked_fill(s < 1 / v.shape[1], 0.0)
        c = F.normalize(s @ v, dim=-1)
        cos = c @ F.normalize(t, dim=-1).mT
        z = scale * (cos - self.margin * torch.eye(n, dtype=cos.dtype))
        z = z.masked_fill(~(mask[:, None] & mask[..., None]), -1e20)
        lp = z.log_softmax(1) + z.log_softmax(2)
        lp = lp.diagonal(dim1=1, dim2=2) * mask
        return -(lp.sum(1) / mask.sum(1).clamp(min=1)).mean() / 2
