import torch
import torch.nn.functional as F


def sparc(v, t, mask, logit_scale):
    """v (B,P,D), t (B,L,D), mask (B,L) bool, logit_scale 1/tau"""
    s = t @ v.mT
    s = (s - s.amin(-1, keepdim=True)) / (s.amax(-1, keepdim=True) - s.amin(-1, keepdim=True)).clamp(min=1e-12)
    s = F.threshold(s, 1 / v.shape[1], 0.0)
    c = F.normalize(s @ v, dim=-1)
    t = F.normalize(t, dim=-1)
    logits = logit_scale * c @ t.mT
    logits = logits.masked_fill(~mask[:, None, :], -1e9)
    v2t = -logits.log_softmax(dim=2).diagonal(dim1=1, dim2=2)
    t2v = -logits.log_softmax(dim=1).diagonal(dim1=1, dim2=2)
    per_token = torch.where(mask, (v2t + t2v) / 2, 0.0)
    return (per_token.sum(1) / mask.sum(1).clamp(min=1)).mean()
