import math
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def group(words: Tensor, patches: Tensor) -> Tensor:
    a = words @ patches.T
    a = a - a.min(dim=1, keepdim=True).values
    a = a / a.max(dim=1, keepdim=True).values
    a = a * a.ge(1 / a.shape[1])
    return a @ patches / a.sum(dim=1, keepdim=True)


def mined_local_loss(
    patch_embeddings: Tensor,
    word_embeddings: Tensor,
    word_counts: Sequence[int],
    temperature: Tensor,
    ratio: float = 0.5,
) -> Tensor:
    """Online mining as in detection; `ratio` of the words are mined."""
    losses = []
    for patches, words, count in zip(patch_embeddings, word_embeddings, word_counts):
        words = words[:count]
        logits = F.normalize(group(words, patches), dim=1) @ F.normalize(words, dim=1).T / temperature
        target = torch.arange(count, device=logits.device)
        loss = F.cross_entropy(logits, target, reduction="none")
        loss = (loss + F.cross_entropy(logits.T, target, reduction="none")) / 2
        hardest = loss.topk(math.ceil(ratio * count)).values
        losses.append(hardest.mean())
    return torch.stack(losses).mean()
