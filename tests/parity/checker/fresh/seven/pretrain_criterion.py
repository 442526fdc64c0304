from dataclasses import dataclass, field
from typing import Dict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class CriterionConfig:
    w_global: float = 0.5
    w_local: float = 1.0
    init_log_scale: float = 2.6593


@dataclass
class CriterionOutput:
    loss: Tensor
    parts: Dict[str, Tensor] = field(default_factory=dict)


def symmetric_ce(logits: Tensor) -> Tensor:
    y = torch.arange(logits.shape[0], device=logits.device)
    return 0.5 * (F.cross_entropy(logits, y) + F.cross_entropy(logits.t(), y))


class PretrainCriterion(nn.Module):
    def __init__(self, cfg: CriterionConfig = CriterionConfig()):
        super().__init__()
        self.cfg = cfg
        self.log_scale = nn.Parameter(torch.tensor(cfg.init_log_scale))

    def pooled(self, patches: Tensor, tokens: Tensor, mask: Tensor):
        weight = mask.to(tokens.dtype).unsqueeze(-1)
        return patches.mean(dim=1), (tokens * weight).sum(dim=1) / weight.sum(dim=1)

    def local(self, patches: Tensor, tokens: Tensor, scale: Tensor) -> Tensor:
        s = tokens @ patches.t()
        lo, hi = s.amin(dim=1, keepdim=True), s.amax(dim=1, keepdim=True)
        s = (s - lo) / (hi - lo)
        s = torch.where(s < 1.0 / patches.shape[0], 0.0, s)
        c = s @ patches / s.sum(dim=1, keepdim=True)
        return symmetric_ce(scale * F.normalize(c, dim=1) @ F.normalize(tokens, dim=1).t())

    def forward(self, patches: Tensor, tokens: Tensor, mask: Tensor) -> CriterionOutput:
        scale = self.log_scale.exp()
        v, t = self.pooled(patches, tokens, mask)
        loss_global = symmetric_ce(scale * F.normalize(v, dim=1) @ F.normalize(t, dim=1).t())
        loss_local = torch.stack([self.local(p, x[m], scale) for p, x, m in zip(patches, tokens, mask.bool())]).mean()
        loss = self.cfg.w_global * loss_global + self.cfg.w_local * loss_local
        return CriterionOutput(loss, {"global": loss_global, "local": loss_local})
