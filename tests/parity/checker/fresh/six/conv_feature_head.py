import torch
import torch.nn as nn
import torch.nn.functional as F
from typing import Dict


class LocalAlignmentHead(nn.Module):
    """ Aligns words with the cells of a conv feature map.

    Input:
        fmap       B x D x H x W
        words      B x D x T    (channels first too, comes out of a Conv1d)
        pad_mask   B x T        1 where padding
    """

    def __init__(self, tau: float = 0.07, learnable: bool = True):
        super().__init__()
        self.log_tau = nn.Parameter(torch.tensor(tau).log(), requires_grad=learnable)

    def align(self, fmap: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        cells = fmap.flatten(2)                                     # B D P
        att = words.transpose(1, 2) @ cells                         # B T P
        att = att - att.amin(2, keepdim=True)
        att = att / att.amax(2, keepdim=True)
        att = att * (att >= 1.0 / cells.shape[2])
        att = F.normalize(att, p=1, dim=2)
        return cells @ att.transpose(1, 2)                          # B D T

    def forward(self, fmap, words, pad_mask) -> Dict[str, torch.Tensor]:
        context = F.normalize(self.align(fmap, words), dim=1)
        words = F.normalize(words, dim=1)
        logits = context.transpose(1, 2) @ words * torch.exp(-self.log_tau)
        gone = pad_mask.bool()
        target = torch.arange(logits.shape[1], device=logits.device)
        target = target[None].masked_fill(gone, -100)               # ignored by cross entropy
        count = (~gone).sum(1)
        c2w = F.cross_entropy(logits.masked_fill(gone[:, None, :], float("-inf")).transpose(1, 2), target, reduction="none")
        w2c = F.cross_entropy(logits.masked_fill(gone[:, :, None], float("-inf")), target, reduction="none")
        c2w, w2c = (c2w.sum(1) / count).mean(), (w2c.sum(1) / count).mean()
        return {"loss": (c2w + w2c) / 2, "loss_context_to_word": c2w.detach(), "loss_word_to_context": w2c.detach()}
