"""An additive margin on the right pairs, as in face recognition."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "MarginLoss",
    "verdict": "unexplained",
    "stage": "logits",
    "call": ["v", "t", "mask", "scale"],
}


class MarginLoss(torch.nn.Module):
    def __init__(self, margin=0.2):
        super().__init__()
        self.margin = margin

    def forward(self, v, t, mask, scale):
        s = torch.bmm(t, v.transpose(1, 2))
        lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
        flat = lo == hi
        s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
        s = torch.where(s < 1 / v.shape[1], 0.0, s)
        c = F.normalize(torch.bmm(s / s.sum(-1, keepdim=True), v), dim=-1)
        cosine = torch.bmm(c, F.normalize(t, dim=-1).transpose(1, 2))
        z = scale * (cosine - self.margin * torch.eye(t.shape[1], dtype=t.dtype))
        z = z.masked_fill(~(mask[:, None, :] & mask[:, :, None]), torch.finfo(z.dtype).min)
        ce = -(z.log_softmax(1) + z.log_softmax(2)).diagonal(dim1=1, dim2=2) / 2
        return (ce.masked_fill(~mask, 0.0).sum(1) / mask.sum(1).clamp(min=1)).mean()
