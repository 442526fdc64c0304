from dataclasses import dataclass, field
from typing import Optional

import torch
import torch.nn as nn


@dataclass
class LossWeights:
    coarse: float = 0.5
    fine: float = 1.0


@dataclass
class SparcConfig:
    weights: LossWeights = field(default_factory=LossWeights)
    threshold: Optional[float] = None
    init_temperature: float = 0.07


class SparcCriterion(nn.Module):
    def __init__(self, cfg: SparcConfig = SparcConfig()):
        super().__init__()
        self.cfg = cfg
        self.log_temperature = nn.Parameter(torch.tensor(cfg.init_temperature).log())

    @staticmethod
    def _cos(x, y):
        return (x / x.norm(dim=-1, keepdim=True)) @ (y / y.norm(dim=-1, keepdim=True)).transpose(-1, -2)

    @staticmethod
    def _ce(logits):
        return torch.logsumexp(logits, -1) - torch.diagonal(logits, dim1=-2, dim2=-1)

    def forward(self, pooled_image, pooled_text, patches, tokens, is_padding):
        temp = self.log_temperature.exp()
        z = self._cos(pooled_image, pooled_text) / temp
        coarse = (self._ce(z).mean() + self._ce(z.t()).mean()) / 2

        s = tokens @ patches.transpose(1, 2)
        s = (s - s.amin(2, True)) / (s.amax(2, True) - s.amin(2, True))
        keep = s >= (self.cfg.threshold if self.cfg.threshold is not None else 1 / patches.shape[1])
        s = s.masked_fill(~keep, 0)
        group = torch.bmm(s / s.sum(2, keepdim=True), patches)
        y = self._cos(group, tokens) / temp
        cols = is_padding.bool()[:, None, :]
        fine = self._ce(y.masked_fill(cols, -1e30)) + self._ce(y.transpose(1, 2).masked_fill(cols, -1e30))
        fine = fine.masked_fill(is_padding.bool(), 0.0).sum(1) / (2 * (~is_padding.bool()).sum(1))
        fine = fine.mean()
        return {"loss": self.cfg.weights.coarse * coarse + self.cfg.weights.fine * fine, "coarse": coarse.detach(),
                "fine": fine.detach(), "kept": keep.double().mean(), "temperature": temp.detach()}
