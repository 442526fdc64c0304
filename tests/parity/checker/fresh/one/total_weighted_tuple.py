from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


class SparcOut(NamedTuple):
    total: Tensor
    global_: Tensor
    fine: Tensor


def _sym(z: Tensor) -> Tensor:
    y = torch.arange(z.size(0), device=z.device)
    return 0.5 * cross_entropy(z, y) + 0.5 * cross_entropy(z.t(), y)


def _group(t: Tensor, v: Tensor) -> Tensor:
    s = t @ v.t()
    s = s - s.amin(1, keepdim=True)
    peak = s.amax(1, keepdim=True)
    s = torch.where(peak > 0, s / torch.where(peak > 0, peak, 1.0), 1.0)
    s = s.masked_fill(s < 1.0 / v.size(0), 0.0)
    return s @ v / s.sum(1, keepdim=True)


def sparc(v_bar: Tensor, t_bar: Tensor, v: Tensor, t: Tensor, caption_lengths: Tensor, logit_scale: Tensor,
          weights: tuple[float, float] = (0.5, 5.0)) -> SparcOut:
    """logit_scale is 1/tau, weights are (lambda_g, lambda_f)."""
    g = _sym(logit_scale * normalize(v_bar, dim=-1) @ normalize(t_bar, dim=-1).t())
    fine = v.new_zeros(())
    for i, n in enumerate(caption_lengths.tolist()):
        if n:
            c = _group(t[i, :n], v[i])
            fine = fine + _sym(logit_scale * normalize(c, dim=-1) @ normalize(t[i, :n], dim=-1).t())
    fine = fine / len(v)
    return SparcOut(weights[0] * g + weights[1] * fine, g, fine)
