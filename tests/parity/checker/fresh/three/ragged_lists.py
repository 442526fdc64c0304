from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class FineConfig:
    sigma: float | None = None
    weight: float = 1.0


def _log_odds(z: torch.Tensor) -> torch.Tensor:
    idx = torch.arange(len(z))
    return (z - z.logsumexp(1, keepdim=True))[idx, idx]


def fine_term(images: Sequence[torch.Tensor], captions: Sequence[torch.Tensor], log_tau: torch.Tensor, cfg=FineConfig()):
    """images: B tensors (P_i,D); captions: B tensors (L_i,D), no padding anywhere; log_tau = log of the temperature."""
    total = torch.zeros((), dtype=images[0].dtype)
    for picture, words in zip(images, captions, strict=True):
        if words.shape[0] == 0:
            continue
        groups = []
        for word in words:
            score = picture.mv(word)
            low, high = score.min(), score.max()
            if high > low:
                score = (score - low) / (high - low)
                score = score * (score >= (cfg.sigma or 1 / len(picture)))
                groups.append(score.matmul(picture) / score.sum())
            else:
                groups.append(picture.mean(0))
        c = torch.stack(groups)
        cosine = (c @ words.T) / torch.outer(c.norm(dim=1), words.norm(dim=1))
        z = cosine / log_tau.exp()
        total = total - 0.5 * (_log_odds(z).mean() + _log_odds(z.T).mean())
    return cfg.weight * total / len(images)
