from collections import namedtuple
from dataclasses import dataclass

import torch
import torch.nn.functional as F

LossOutput = namedtuple("LossOutput", ["loss", "global_loss", "local_loss"])


@dataclass
class LossConfig:
    lambda_global: float = 0.5
    lambda_local: float = 1.0


class SparcCriterion:
    def __init__(self, cfg: LossConfig = LossConfig()):
        self.cfg = cfg

    @staticmethod
    def symmetric_ce(logits, dim_a, dim_b):
        """-log p of the diagonal when classes lie along dim_a, and along dim_b"""
        d = logits.diagonal(dim1=dim_a, dim2=dim_b)
        return logits.logsumexp(dim_a) - d, logits.logsumexp(dim_b) - d

    def global_loss(self, img, txt, temp):
        logits = F.normalize(img, dim=-1) @ F.normalize(txt, dim=-1).T / temp
        a, b = self.symmetric_ce(logits, 0, 1)
        return (a.mean() + b.mean()) / 2

    def local_loss(self, patches, tokens, lengths, temp):
        out = []
        for p, t, n in zip(patches, tokens, lengths):
            if n == 0:
                out.append(t.sum() * 0)
                continue
            t = t[:n]
            sim = t @ p.T
            lo, hi = sim.amin(1), sim.amax(1)
            sim = (sim - lo[:, None]) / (hi - lo)[:, None]
            sim = torch.where(sim < 1 / len(p), 0.0, sim)
            grouped = (sim / sim.sum(1)[:, None]) @ p
            logits = F.normalize(grouped, dim=-1) @ F.normalize(t, dim=-1).T / temp
            a, b = self.symmetric_ce(logits, 0, 1)
            out.append((a + b).mean() / 2)
        return torch.stack(out).mean()

    def __call__(self, img, txt, patches, tokens, lengths, temp):
        g = self.global_loss(img, txt, temp)
        l = self.local_loss(patches, tokens, lengths, temp)
        return LossOutput(self.cfg.lambda_global * g + self.cfg.lambda_local * l, g, l)
