"""Labels are made for as many tokens as there are patches: no other batch runs."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "square_loss",
    "verdict": "cannot_run",
    "call": ["v", "t", "mask", "scale"],
}


def square_loss(patches, tokens, mask, scale):
    b, n = patches.shape[:2]
    s = torch.einsum("bld,bpd->blp", tokens, patches)
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo + 1e-6)
    s = torch.where(s < 1 / n, 0.0, s)
    c = F.normalize(s @ patches / s.sum(-1, keepdim=True), dim=-1)
    logits = scale * c @ F.normalize(tokens, dim=-1).transpose(1, 2)
    labels = torch.arange(n).repeat(b).view(b * n)
    one = F.cross_entropy(logits.view(b * n, n), labels, reduction="none")
    two = F.cross_entropy(logits.transpose(1, 2).reshape(b * n, n), labels, reduction="none")
    return ((one + two) * mask.view(-1)).sum() / (2 * mask.sum())
