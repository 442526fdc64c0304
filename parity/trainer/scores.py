"""How an objective scores a picture and a caption in retrieval, where that is not the cosine of the pooled embeddings.

N pictures, M captions, all on one process; L tokens, P patches, D joint width.  At least float32 inside.  Shares no line with
sparc_ref; the sums are those of the losses (objectives.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from parity.trainer.loss import unit, wide
from parity.trainer.objectives import (
    Parts,
    attended_scores,
    embedded,
    late_interaction,
    learned,
    pooled_scores,
    settings_of,
    voted_scores,
)
from parity.trainer.pairs import How


def native_scores(
    objective: Any, embeddings: Parts, mask: Tensor, params: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor] | None:
    """embeddings: v (N,P,D), t (M,L,D), v_bar (N,D), t_bar (M,D); mask (M,L) bool; params: what the losses use, by name.
    -> (N,M) for pictures that ask, (N,M) for captions that ask; None where the score is the cosine"""
    if objective is None or objective.objective not in SCORES:
        return None
    with torch.autocast(mask.device.type, enabled=False):
        x = {name: wide(e) for name, e in embeddings.items()}
        x["t"] = torch.where(mask[..., None], x["t"], 0)
        p = {name: q.to(x["v"].dtype) for name, q in params.items()}
        return SCORES[objective.objective](x, mask, p, settings_of(objective))


def filip(x: Parts, mask: Tensor, p: Parts, o: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """With every token: the mean of the largest products, of the asking side's tokens."""
    patches, words = unit(x["v"]), unit(x["t"])
    every = torch.ones_like(patches[..., 0], dtype=torch.bool)
    s_image = late_interaction(patches, every, words, mask, "share", [len(words)], How())
    return s_image, late_interaction(words, mask, patches, every, "share", [len(patches)], How()).T


def pacl(x: Parts, mask: Tensor, p: Parts, o: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """phi with each caption's own weights of the patches."""
    phi = pooled_scores(embedded(x["v"], p), unit(x["t_bar"]), p, How(), o["values"], o["weight_scale"])
    return phi, phi


def gloria(x: Parts, mask: Tensor, p: Parts, o: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The cosine of the pooled embeddings plus the words' votes, brought to a cosine's size."""
    temp1, temp2 = 4.0, 5.0                               # what they are where they are not learned (gloria)
    z = voted_scores(x["v"], x["t"], mask, p, How(), temp1, temp2, **o)
    s = unit(x["v_bar"]) @ unit(x["t_bar"]).T + z / learned(p, "theta_words", temp2)
    return s, s


def flair(x: Parts, mask: Tensor, p: Parts, o: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """phi with each caption's own attention."""
    phi = attended_scores(x["v"], x["t_bar"], p, How())
    return phi, phi


SCORES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "filip": filip, "clip_filip": filip, "pacl": pacl, "gloria": gloria, "flair": flair}
