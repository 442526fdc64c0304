import torch
from torch import nn
import torch.nn.functional as F


class LocalHead(nn.Module):
    r"""Fine-grained term.

    Shape:
        - visual: :math:`(B, P, D)`
        - textual: :math:`(B, L, D)`
        - padding_mask: :math:`(B, L)`, ``True`` for padding
    """

    def __init__(self, reduction: str = "mean"):
        super().__init__()
        self.reduction = reduction

    def forward(self, visual, textual, padding_mask, scale):
        affinity = textual @ visual.transpose(1, 2)
        affinity = affinity - affinity.amin(dim=2, keepdim=True)
        affinity = affinity / affinity.amax(dim=2, keepdim=True)
        affinity = F.threshold(affinity, 1.0 / visual.size(1), 0.0)
        affinity = affinity / affinity.sum(dim=2, keepdim=True)
        grouped = affinity @ visual

        logits = scale * grouped @ textual.transpose(1, 2)
        real = ~padding_mask
        v2t = F.log_softmax(logits.masked_fill(padding_mask.unsqueeze(1), float("-inf")), dim=2)
        t2v = F.log_softmax(logits.masked_fill(padding_mask.unsqueeze(2), float("-inf")), dim=1)
        nll = -0.5 * (v2t.diagonal(dim1=1, dim2=2) + t2v.diagonal(dim1=1, dim2=2))
        nll = nll.masked_fill(padding_mask, 0.0).sum(dim=1) / real.sum(dim=1)
        return nll.mean() if self.reduction == "mean" else nll
