import math
from dataclasses import dataclass

import torch


@dataclass
class Angular:
    inv_tau: torch.Tensor
    eps: float = 1e-12

    def unit(self, x):
        return x / x.norm(dim=-1, keepdim=True).clamp_min(self.eps)

    def groups(self, images, texts):
        s = torch.einsum("nld,npd->nlp", texts, images)
        s = s - s.min(-1, keepdim=True).values
        s = s / s.max(-1, keepdim=True).values
        return torch.einsum("nlp,npd->nld", s * (s >= 1 / s.shape[-1]), images)

    def apply_loss(self, *, images, texts, pad):
        cos = self.unit(self.groups(images, texts)) @ self.unit(texts).mT
        z = self.inv_tau * (1 - torch.acos(cos) * 2 / math.pi)
        z = z.masked_fill(pad[:, None, :], -1e30).masked_fill(pad[:, :, None], -1e30)
        nll = torch.logsumexp(z, 1) + torch.logsumexp(z, 2) - 2 * torch.diagonal(z, dim1=1, dim2=2)
        real = (~pad).to(nll.dtype)
        return 0.5 * ((nll * real).sum(1) / real.sum(1).clamp_min(1)).mean()
