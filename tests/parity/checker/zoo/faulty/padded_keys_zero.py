"""logits * mask: a padded key gets a logit of zero, as good as orthogonal."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "sparse_loss",
    "verdict": "conditional",
    "deviations": ["logits.padding_filled_zero"],
    "conditions": ["no padding"],
    "call": ["v", "t", "mask_float", "scale"],
}


def sparse_loss(patches, words, mask, scale):
    att = torch.einsum("bwc,brc->bwr", words, patches)
    low, high = att.amin(-1, keepdim=True), att.amax(-1, keepdim=True)
    att = torch.where(high > low, (att - low) / torch.where(high > low, high - low, 1.0), 1.0)
    att = torch.where(att < 1.0 / patches.shape[1], 0.0, att)
    ctx = torch.einsum("bwr,brc->bwc", att / att.sum(-1, keepdim=True), patches)
    logits = scale * torch.einsum("bjc,bkc->bjk", F.normalize(ctx, dim=-1), F.normalize(words, dim=-1))
    logits = logits * mask[:, None, :] * mask[:, :, None]
    log_p = F.log_softmax(logits, dim=1) + F.log_softmax(logits, dim=2)
    nll = -torch.diagonal(log_p, dim1=1, dim2=2) * mask
    return 0.5 * (nll.sum(1) / mask.sum(1).clamp(min=1)).mean()
