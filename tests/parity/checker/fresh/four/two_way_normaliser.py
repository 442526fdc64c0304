from typing import TypedDict

import torch
from torch import Tensor


class Batch(TypedDict):
    patches: Tensor
    words: Tensor
    word_lengths: Tensor
    scale: Tensor


def assign(words: Tensor, patches: Tensor) -> Tensor:
    a = words @ patches.T
    a = (a - a.amin(1, keepdim=True)) / (a.amax(1, keepdim=True) - a.amin(1, keepdim=True))
    a = a * (a >= 1 / len(patches))
    for axis in (0, 1):
        a = a / a.sum(axis, keepdim=True).clamp(min=1e-12)
    return a


def step(batch: Batch) -> Tensor:
    per_caption = []
    for x, y, n in zip(batch["patches"], batch["words"], batch["word_lengths"].tolist()):
        y = y[:n]
        c = assign(y, x) @ x
        z = batch["scale"] * torch.cosine_similarity(c.unsqueeze(1), y.unsqueeze(0), dim=-1)
        per_caption.append(-(z.log_softmax(0) + z.log_softmax(1)).diagonal().mean() / 2)
    return torch.stack(per_caption).mean()
