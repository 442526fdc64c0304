import torch
import torch.nn as nn
import torch.nn.functional as F


class MicrobatchedLocalLoss(nn.Module):
    """Runs the local loss in slices of the batch to bound its memory."""

    def __init__(self, micro_batch: int = 32):
        super().__init__()
        self.micro_batch = micro_batch

    def _loss(self, patches, tokens, mask, tau):
        sim = torch.einsum("bld,bpd->blp", tokens, patches)
        sim = sim - sim.min(dim=-1, keepdim=True).values
        sim = sim / sim.max(dim=-1, keepdim=True).values
        sim = sim.masked_fill(sim < 1 / patches.size(1), 0)
        sim = sim / sim.sum(dim=-1, keepdim=True)
        grouped = F.normalize(torch.einsum("blp,bpd->bld", sim, patches), dim=-1)
        logits = torch.einsum("bld,bmd->blm", grouped, F.normalize(tokens, dim=-1)) / tau
        bias = (1.0 - mask)[:, None, :] * -1e9
        diag_i = F.log_softmax(logits + bias, dim=-1).diagonal(dim1=1, dim2=2)
        diag_t = F.log_softmax(logits.transpose(1, 2) + bias, dim=-1).diagonal(dim1=1, dim2=2)
        nll = -0.5 * ((diag_i + diag_t) * mask).sum(-1) / mask.sum(-1)
        return nll.mean()

    def forward(self, patches, tokens, mask, tau):
        """mask: float, 1 for tokens"""
        slices = zip(*(x.split(self.micro_batch) for x in (patches, tokens, mask)))
        return torch.stack([self._loss(*part, tau) for part in slices]).mean()
