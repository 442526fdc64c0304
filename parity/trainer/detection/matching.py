"""Which patch answers for which box: the cheapest one-to-one match of a picture."""

import torch
import torch.nn.functional as F
from torch import Tensor

from parity.trainer.detection.losses import ALPHA, GAMMA, ONES, Weights, corners, giou


@torch.no_grad()
def match_cost(logits: Tensor, boxes: Tensor, labels: Tensor, truth: Tensor, weights: Weights = ONES) -> Tensor:
    """logits (N,Q), boxes (N,4), labels (M,Q) 0|1, truth (M,4) cx, cy, w, h -> (N,M)

    Of each label that a box has, the focal loss of saying yes less that of saying no; L1 of centres and sizes; -GIoU.
    """
    z = logits.double()
    p = torch.sigmoid(z)
    yes, no = ALPHA * (1 - p) ** GAMMA * F.softplus(-z), (1 - ALPHA) * p**GAMMA * F.softplus(z)
    label = (yes - no) @ labels.to(z.dtype).T
    a, b = boxes.double()[:, None], truth.double()[None]
    return weights.label * label + weights.l1 * (a - b).abs().sum(-1) - weights.giou * giou(corners(a), corners(b))


def match(cost: Tensor) -> tuple[Tensor, Tensor]:
    """The Hungarian algorithm.      cost (N,M) -> patch, target (min(N,M),) int64; ValueError for what is not finite"""
    from scipy.optimize import linear_sum_assignment

    if not bool(torch.isfinite(cost).all()):
        raise ValueError("the cost of a match is not finite: the detector's output is not; lower the learning rate")
    patch, target = linear_sum_assignment(cost.cpu().numpy())
    return torch.from_numpy(patch).to(cost.device), torch.from_numpy(target).to(cost.device)
