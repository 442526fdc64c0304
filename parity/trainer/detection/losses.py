"""What the detector is trained on, for one picture: N patches, Q queries, M boxes to find.

Every patch is asked about every query (focal loss); patches that are matched to a box also have to say where it is (L1, GIoU).
Boxes are (cx, cy, w, h) in 0..1.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ALPHA, GAMMA = 0.3, 2.0
EPS = 1e-6                                                # of the hull in GIoU, the published code's


@dataclass(frozen=True)
class Weights:
    """Of the terms, in the loss and in the cost of a match."""

    label: float = 1.0
    l1: float = 1.0
    giou: float = 1.0


ONES = Weights()


def focal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sigmoid cross-entropy times (1 - p of the truth)^2 times .3 for a yes, .7 for a no.      (...), (...) 0|1 -> (...)"""
    p = torch.sigmoid(logits)
    yes = ALPHA * (1 - p) ** GAMMA * F.softplus(-logits)
    no = (1 - ALPHA) * p**GAMMA * F.softplus(logits)
    return labels * yes + (1 - labels) * no


def corners(box: Tensor) -> Tensor:
    """cx, cy, w, h -> x0, y0, x1, y1                             (...,4) -> (...,4)"""
    centre, half = box[..., :2], box[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """IoU - (hull - union) / hull, element by element; of corners.    (...,4), (...,4) -> (...)"""
    def area(low: Tensor, high: Tensor) -> Tensor:
        return (high - low).clamp(min=0).prod(-1)

    (a0, a1), (b0, b1) = (x.split(2, -1) for x in (a, b))
    both = area(torch.maximum(a0, b0), torch.minimum(a1, b1))
    union = area(a0, a1) + area(b0, b1) - both
    hull = area(torch.minimum(a0, b0), torch.maximum(a1, b1))
    return both / union.clamp(min=torch.finfo(union.dtype).tiny) - (hull - union) / (hull + EPS)


def picture_loss(
    logits: Tensor, boxes: Tensor, labels: Tensor, truth: Tensor, patch: Tensor, target: Tensor, weights: Weights = ONES
) -> dict[str, Tensor]:
    """The losses of one picture.      -> "loss", "loss_label", "loss_l1", "loss_giou", ()

    logits (N,Q), boxes (N,4); labels (M,Q) 0|1, truth (M,4); patch, target (m,): box target[i] belongs to patch[i]; a target
    without any label is padding, its patch is asked for nothing but "no".
    The sum over patches and queries is divided by the number of yeses, those over boxes by that of boxes; by 1 for none.
    """
    real = labels.any(1)[target].to(logits.dtype)         # (m,)
    asked = torch.zeros_like(logits).index_put((patch,), labels[target].to(logits.dtype))
    label = focal_loss(logits, asked).sum() / asked.sum().clamp(min=1)
    count = labels.any(1).sum().clamp(min=1)
    a, b = corners(boxes[patch]), corners(truth[target])
    l1 = ((a - b).abs().sum(-1) * real).sum() / count     # of corners, where the match's cost has centres and sizes
    general = ((1 - giou(a, b)) * real).sum() / count
    total = weights.label * label + weights.l1 * l1 + weights.giou * general
    return {"loss": total, "loss_label": label, "loss_l1": l1, "loss_giou": general}
