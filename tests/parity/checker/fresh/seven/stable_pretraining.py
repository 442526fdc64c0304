from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass
class LocalConfig:
    z_loss: float = 1e-3
    eps: float = 1e-12


def _lse_and_pos(z, mask):
    lse = z.masked_fill(~mask[:, None, :], float("-inf")).logsumexp(-1)
    return lse, z.diagonal(dim1=-2, dim2=-1)


def local_loss(tokens, patches, lengths, logit_scale, cfg=LocalConfig()):
    """logit_scale: inverse temperature; cfg.z_loss as in PaLM"""
    s = tokens @ patches.mT
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = torch.where(s < 1 / s.shape[-1], 0, s)
    c = F.normalize((s / s.sum(-1, keepdim=True)) @ patches, dim=-1, eps=cfg.eps)
    t = F.normalize(tokens, dim=-1, eps=cfg.eps)
    mask = torch.arange(t.shape[1], device=t.device) < lengths[:, None]

    z = logit_scale * c @ t.mT
    lse_i, pos = _lse_and_pos(z, mask)
    lse_t, _ = _lse_and_pos(z.mT, mask)
    per_token = (lse_i + lse_t) / 2 - pos
    per_token = per_token + cfg.z_loss * (lse_i.square() + lse_t.square()) / 2
    return ((per_token * mask).sum(1) / mask.sum(1)).mean()
