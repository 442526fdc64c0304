"""All real tokens of the batch packed into one long row (varlen style); a block mask keeps captions apart."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "varlen_loss",
    "verdict": "listing1",
    "call": ["t", "v", "lengths", "scale"],
}


def varlen_loss(tokens, patches, lengths, scale):
    place = torch.arange(tokens.shape[1], device=tokens.device)
    keep = place[None, :] < lengths[:, None]
    owner = keep.nonzero()[:, 0]
    packed = tokens[keep]                                 # (N, D)
    if packed.shape[0] == 0:
        return patches.sum() * 0
    mine = patches[owner]                                 # (N, P, D)
    s = torch.einsum("nd,npd->np", packed, mine)
    low = s.min(dim=1, keepdim=True).values
    high = s.max(dim=1, keepdim=True).values
    s = torch.where(high == low, torch.ones_like(s), (s - low) / torch.where(high == low, torch.ones_like(low), high - low))
    s = torch.where(s < 1 / patches.shape[1], torch.zeros_like(s), s)
    grouped = torch.einsum("np,npd->nd", s / s.sum(1, keepdim=True), mine)
    z = scale * F.normalize(grouped, dim=-1) @ F.normalize(packed, dim=-1).T
    z = z.masked_fill(owner[:, None] != owner[None, :], -torch.inf)
    label = torch.arange(len(z), device=z.device)
    return (F.cross_entropy(z, label) + F.cross_entropy(z.T, label)) / 2
