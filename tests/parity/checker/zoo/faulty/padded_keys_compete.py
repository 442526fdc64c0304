"""Rows are masked, columns are not."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "fine_grained",
    "verdict": "conditional",
    "deviations": ["logits.padding_not_masked"],
    "also": ["edge.padding_leak", "edge.zero_padding"],
    "conditions": ["no padding"],
    "call": ["v", "t", "mask", "tau"],
}


def fine_grained(v, t, mask, tau):
    s = torch.matmul(t, v.transpose(1, 2))
    lo = s.amin(dim=-1, keepdim=True)
    hi = s.amax(dim=-1, keepdim=True)
    flat = lo.eq(hi)
    s = torch.where(flat, torch.ones_like(s), (s - lo) / torch.where(flat, torch.ones_like(hi), hi - lo))
    s = s.masked_fill(s < 1 / v.shape[1], 0)
    c = F.normalize((s / s.sum(-1, keepdim=True)) @ v, dim=-1)
    t = F.normalize(t, dim=-1)
    logits = c @ t.transpose(1, 2) / tau
    labels = torch.arange(t.shape[1], device=t.device).expand(len(t), -1)
    ce = F.cross_entropy(logits.reshape(-1, t.shape[1]), labels.reshape(-1), reduction="none")
    ce = ce + F.cross_entropy(logits.transpose(1, 2).reshape(-1, t.shape[1]), labels.reshape(-1), reduction="none")
    ce = ce.view(labels.shape) * mask
    return (ce.sum(1) / mask.sum(1).clamp(min=1) / 2).mean()
