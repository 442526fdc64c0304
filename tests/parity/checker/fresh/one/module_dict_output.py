import math

import torch
from torch import nn
import torch.nn.functional as F


class FineGrainedSparcLoss(nn.Module):
    def __init__(self, init_temperature: float = 0.07):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1.0 / init_temperature)))

    def align(self, tokens, patches):
        similarity = torch.bmm(tokens, patches.mT)
        low = similarity.min(-1, keepdim=True).values
        span = similarity.max(-1, keepdim=True).values - low
        constant = span <= 0
        similarity = (similarity - low) / span.masked_fill(constant, 1.0)
        similarity = similarity.masked_fill(constant, 1.0)
        similarity = F.threshold(similarity, 1.0 / patches.size(1), 0.0)
        return similarity / similarity.sum(-1, keepdim=True)

    def forward(self, image_patches, text_tokens, attention_mask):
        keep = attention_mask.bool()
        text_tokens = text_tokens.masked_fill(~keep.unsqueeze(-1), 1.0)
        grouped = torch.bmm(self.align(text_tokens, image_patches), image_patches)
        logits = self.logit_scale.exp() * torch.bmm(F.normalize(grouped, dim=-1), F.normalize(text_tokens, dim=-1).mT)
        losses = {}
        for name, z in (("vision_to_text", logits), ("text_to_vision", logits.mT)):
            z = z.masked_fill(~keep[:, None, :], torch.finfo(z.dtype).min)
            nll = -torch.log_softmax(z, dim=-1).diagonal(dim1=1, dim2=2) * keep
            losses[name] = (nll.sum(-1) / keep.sum(-1).clamp(min=1)).mean()
        losses["loss"] = 0.5 * (losses["vision_to_text"] + losses["text_to_vision"])
        return losses
