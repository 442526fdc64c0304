import math

import torch
from torch import nn
import torch.nn.functional as F


class SparcLocalLoss(nn.Module):
    def __init__(self, init_tau=0.07, max_scale=100.0):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / init_tau)))
        self.max_scale = max_scale

    def forward(self, patches, tokens, mask):
        scale = min(math.exp(self.logit_scale.item()), self.max_scale)
        s = tokens @ patches.mT
        lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
        s = (s - lo) / (hi - lo + 1e-12)
        s = torch.where(s >= 1 / patches.size(-2), s, 0)
        c = F.normalize(s @ patches, dim=-1)
        logits = scale * torch.matmul(c, F.normalize(tokens, dim=-1).mT)
        logits_t = logits.mT
        keep = mask[:, None, :] > 0
        lp = torch.log_softmax(torch.where(keep, logits, -1e9), -1) + torch.log_softmax(torch.where(keep, logits_t, -1e9), -1)
        token_loss = -torch.diagonal(lp, dim1=1, dim2=2) / 2 * mask
        return (token_loss.sum(-1) / mask.sum(-1).clamp(min=1)).mean()
