"""Names and pictures in, boxes out."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from parity.trainer.detection.augment import padded, said
from parity.trainer.detection.heads import Detector
from parity.trainer.detection.losses import corners
from parity.trainer.evaluate import normalized
from sparc_ref.tasks.prompts import templates_of

Ensemble: TypeAlias = Literal["logits", "probs"]
AT_ONCE = 256                                             # texts that are embedded at a time


@torch.no_grad()
def embed_names(model: Detector, tokenizer: Any, names: Sequence[str], prompts: str, longest: int) -> Tensor:
    """Every class name in every template.      -> queries (R,K,D), R the templates"""
    templates = templates_of(prompts)
    texts = [template.replace("{c}", said(name)) for template in templates for name in names]
    device, longest = next(model.parameters()).device, min(longest, model.config.max_tokens)
    parts = []
    for a in range(0, len(texts), AT_ONCE):
        tokens, mask = (torch.from_numpy(x).to(device) for x in tokenizer.batch(texts[a:a + AT_ONCE], longest))
        parts.append(model.embed(tokens, mask))
    return torch.cat(parts).unflatten(0, (len(templates), len(names)))


@torch.no_grad()
def detect(
    model: Detector, image: np.ndarray, size: tuple[int, int], queries: Tensor, pixels: int, most: int = 300,
    ensemble: Ensemble = "logits",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best boxes of one picture.      -> box (n,4) x, y, w, h in pixels, label (n,), score (n,), best first

    image (h,w,3) uint8, of the shape of the picture as it is stored, whose size is (width, height); queries (R,K,D)
    most: pairs of patch and class, over all of them: a patch may have several names, and nothing is suppressed
    ensemble: templates' "logits" are averaged, as the published code does, or their "probs", as the paper says
    """
    device = queries.device
    x = normalized(torch.from_numpy(padded(image, pixels)[None]).to(device)).to(next(model.parameters()).dtype)
    R, K, _ = queries.shape
    logits, box = model.detect(x, queries.flatten(0, 1))  # (1,N,R*K), (1,N,4)
    logits = logits[0].float().unflatten(-1, (R, K))      # (N,R,K)
    score = torch.sigmoid(logits.mean(1)) if ensemble == "logits" else torch.sigmoid(logits).mean(1)
    value, flat = score.flatten().topk(min(most, score.numel()))
    patch, label = flat // K, flat % K
    longest = max(size)                                   # the square is as wide and high as the longer side
    xyxy = corners(box[0].double())[patch].clamp(0, 1) * longest
    xyxy = torch.minimum(xyxy, torch.tensor([*size, *size], device=device))
    xywh = torch.cat([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], 1)
    return xywh.cpu().numpy(), label.cpu().numpy(), value.cpu().numpy()
