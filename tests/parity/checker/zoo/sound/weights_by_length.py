"""Weights of l2 length one rather than of sum one: a factor per row, which the norm of the group takes out again."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "alignment_objective",
    "verdict": "eq6",
    "call": ["v", "t", "mask", "scale"],
}


def alignment_objective(regions, words, keep, scale):
    affinity = torch.matmul(words, regions.mT)
    low, high = torch.aminmax(affinity, dim=-1, keepdim=True)
    even = low == high
    affinity = torch.where(even, 1.0, (affinity - low) / torch.where(even, 1.0, high - low))
    affinity = torch.where(affinity < 1 / regions.shape[1], 0.0, affinity)
    affinity = F.normalize(affinity, p=2, dim=-1)
    context = F.normalize(affinity @ regions, dim=-1)
    z = scale * context @ F.normalize(words, dim=-1).mT
    z = torch.where(keep[:, None, :] & keep[:, :, None], z, torch.finfo(z.dtype).min)
    nll = -(z.log_softmax(1) + z.log_softmax(2)).diagonal(dim1=1, dim2=2) / 2
    return (torch.where(keep, nll, 0.0).sum(1) / keep.sum(1).clamp(min=1)).mean()
