"""x / x.norm() on padded tokens: fine until the text tower writes zeros there."""

import torch

EXPECT = {
    "target": "loss",
    "verdict": "conditional",
    "deviations": ["edge.zero_padding"],
    "also": ["edge.nan_gradient"],
    "conditions": ["no zero embeddings at padding"],
    "call": ["v", "t", "mask", "scale"],
}


def loss(v, t, mask, scale):
    s = t @ v.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = hi == lo
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s = torch.where(s < 1.0 / v.shape[1], 0.0, s)
    c = (s / s.sum(-1, keepdim=True)) @ v
    c = c / c.norm(dim=-1, keepdim=True)
    t = t / t.norm(dim=-1, keepdim=True)
    z = scale * c @ t.mT
    floor = torch.finfo(z.dtype).min
    a = z.masked_fill(~mask[:, None, :], floor).log_softmax(2)
    b = z.masked_fill(~mask[:, :, None], floor).log_softmax(1)
    ce = -torch.where(mask, (a + b).diagonal(dim1=1, dim2=2), 0.0) / 2
    return (ce.sum(1) / mask.sum(1).clamp(min=1)).mean()
