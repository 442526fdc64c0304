"""Greedy and beam search, many pictures at a time.

N sequences, K beams, L tokens, V vocabulary.  Every step computes all words anew: captions are short, and no cache is kept.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def search(
    logits: Callable[[Tensor], Tensor], prompt: Tensor, end: int, *, beams: int = 3, most: int = 20, penalty: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The most probable continuations of each prompt, best first.      prompt (N,L0) -> tokens (N,K,<=most), score (N,K)

    logits      tokens (N*K,L), row n*K+k is beam k of prompt n -> (N*K,V), of the word that follows
    end         the token that ends a text, kept in it; what follows it there is `end` too
    penalty     score = log-probability / (number of new tokens, `end` counted)^penalty; 0: no preference
    A text that has ended keeps its beam with its score, so that one beam is greedy search, and as many beams as there are texts
    find the best of all.  Equal scores: the beam before, then the smaller token.
    """
    if beams < 1 or most < 1:
        raise ValueError(f"beams, most: expected at least 1, got {beams} and {most}")
    N, at = len(prompt), prompt.shape[1]
    tokens = prompt.repeat_interleave(beams, 0)                                           # (N*K,L)
    total = torch.full((N, beams), -torch.inf, device=prompt.device)
    total[:, 0] = 0                                                                       # the beams start as one
    length = torch.zeros((N, beams), dtype=torch.int64, device=prompt.device)
    done = torch.zeros((N, beams), dtype=torch.bool, device=prompt.device)
    for _ in range(most):
        step = torch.log_softmax(logits(tokens).double(), -1).unflatten(0, (N, beams))     # (N,K,V)
        V = step.shape[-1]
        kept = torch.full_like(step, -torch.inf)
        kept[..., end] = 0
        step = torch.where(done[..., None], kept, step) + total[..., None]
        lengths = (length + ~done)[..., None].expand(-1, -1, V)
        score = step / lengths.double() ** penalty
        best = score.flatten(1).sort(dim=1, descending=True, stable=True).indices[:, :beams]  # (N,K)
        if best.shape[1] < beams:                                                         # fewer texts than beams
            best = torch.cat([best, best[:, -1:].expand(-1, beams - best.shape[1])], 1)
        beam, word = best // V, best % V
        total, length = step.flatten(1).gather(1, best), lengths.flatten(1).gather(1, best)
        done = done.gather(1, beam) | (word == end)
        rows = (beam + beams * torch.arange(N, device=prompt.device)[:, None]).flatten()
        tokens = torch.cat([tokens[rows], word.flatten()[:, None]], 1)
        if (done[:, 0] if penalty == 0 else done).all():                                  # none below can still rise
            break
    return tokens[:, at:].unflatten(0, (N, beams)), total / length.double() ** penalty


@torch.no_grad()
def captions_of(
    model: Any, images: Tensor, *, beams: int = 3, most: int = 20, penalty: float = 0.0, prompt: str = ""
) -> list[tuple[str, bool]]:
    """A caption of each picture, and whether it came to its end.      images (N,3,H,W) -> N pairs"""
    language = model.language
    media = model.media(images[:, None]).repeat_interleave(beams, 0)
    start = torch.tensor([[language.start, language.image, *language.encode(prompt)]] * len(images), device=images.device)
    if start.shape[1] + most > language.longest:
        raise ValueError(f"most: expected at most {language.longest - start.shape[1]} new tokens after this prompt, got {most}")
    tokens, _ = search(lambda tokens: model.read(media, tokens)[:, -1], start, language.end, beams=beams, most=most,
                       penalty=penalty)
    return [text_of(language, row) for row in tokens[:, 0].tolist()]


def text_of(language: Any, ids: Sequence[int]) -> tuple[str, bool]:
    ended = language.end in ids
    return language.decode(list(ids[:ids.index(language.end)] if ended else ids)).strip(), ended
