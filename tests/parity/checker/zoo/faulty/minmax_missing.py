"""Inner products go straight to the threshold."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "word_patch_loss",
    "verdict": "explained",
    "deviations": ["minmax.missing"],
    "call": ["t", "v", "mask_float", "scale"],
}


def word_patch_loss(words, patches, mask, scale):
    attn = torch.bmm(words, patches.permute(0, 2, 1))
    attn = attn * (attn >= 1.0 / patches.shape[1]).type_as(attn)
    total = attn.sum(dim=2, keepdim=True)
    nothing = total == 0
    attn = torch.where(nothing, torch.full_like(attn, 1 / patches.shape[1]), attn / total.masked_fill(nothing, 1))
    context = F.normalize(torch.bmm(attn, patches), dim=2)
    words = F.normalize(words, dim=2)
    logits = scale * torch.bmm(context, words.permute(0, 2, 1))
    bias = (1 - mask)[:, None, :] * -1e6
    rows = torch.logsumexp(logits + bias, 2) - torch.diagonal(logits, dim1=1, dim2=2)
    cols = torch.logsumexp(logits.permute(0, 2, 1) + bias, 2) - torch.diagonal(logits, dim1=1, dim2=2)
    per_caption = ((rows + cols) * mask).sum(1) / (2 * mask.sum(1).clamp(min=1))
    return per_caption.mean()
