"""FILIP-like attention over normalised patches, with both directions returned and summed by the caller."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "cross_attention_losses",
    "verdict": "explained",
    "deviations": ["similarity.cosine", "weights.softmax_minmax=s_til", "threshold.constant=0.2"],
    "call": ["v", "t", "padding", "scale"],
    "returns": {"v2t": "vt", "t2v": "tv"},
}


def cross_attention_losses(visual, textual, padding_mask, scale):
    keep = ~padding_mask
    s = torch.matmul(textual, F.normalize(visual, dim=-1).mT)
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = lo == hi
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    w = torch.softmax(torch.where(s >= 0.2, s, 0.0), dim=-1)
    c = F.normalize(w @ visual, dim=-1)
    u = F.normalize(textual, dim=-1)
    z = scale * c @ u.mT
    n = keep.sum(1).clamp(min=1)
    out = {}
    for name, logits in (("v2t", z), ("t2v", z.mT)):
        ce = -logits.masked_fill(padding_mask[:, None, :], -1e9).log_softmax(-1).diagonal(dim1=1, dim2=2)
        out[name] = (ce.masked_fill(padding_mask, 0).sum(1) / n).mean()
    return out
