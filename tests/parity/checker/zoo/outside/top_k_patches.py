"""The best third of the patches in place of a threshold."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "topk_loss",
    "verdict": "unexplained",
    "stage": "threshold",
    "call": ["v", "t", "mask", "tau"],
}


def topk_loss(patches, tokens, mask, tau, keep=1 / 3):
    s = torch.einsum("bld,bpd->blp", tokens, patches)
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = lo == hi
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    k = max(1, round(keep * patches.shape[1]))
    index = s.topk(k, dim=-1).indices
    sparse = s * torch.zeros_like(s).scatter(-1, index, 1.0)
    c = torch.einsum("blp,bpd->bld", sparse / sparse.sum(-1, keepdim=True), patches)
    z = torch.einsum("bjd,bkd->bjk", F.normalize(c, dim=-1), F.normalize(tokens, dim=-1)) / tau
    z = z.masked_fill(~(mask[:, None, :] & mask[:, :, None]), -1e9)
    ce = -(z.log_softmax(1) + z.log_softmax(2)).diagonal(dim1=1, dim2=2) / 2
    return (torch.where(mask, ce, 0.0).sum(1) / mask.sum(1).clamp(min=1)).mean()
