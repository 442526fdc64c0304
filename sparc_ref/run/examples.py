"""What figures show of single examples: the stages of the alignment, word by word, and predicted against true masks."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparc_ref.model import SPARCConfig
from sparc_ref.objectives.chosen import ObjectiveConfig
from sparc_ref.run.measure import (
    align,
    as_compared,
    class_embeddings,
    grid_of,
    images_of,
    regions_of,
    segmented,
    texts_of,
    truth_of,
)

UNSPACED = re.compile(  # Thai, Lao, Myanmar, Khmer, kana, Han: no spaces between words, so a run of letters is no word
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]")


@dataclass(frozen=True, eq=False)
class Explained:
    """One picture and caption, seen through one model.

    image       (H,W,3) uint8
    words       L words of the caption as they stand in it, the pieces of one word joined; special tokens are left out
    similarity, minmax, sparse, weights     (L,P), eqs. 2-4, of a word in several pieces their mean, so that weights still sum
                to 1 and average the patches as eq. 5 does on average; minmax and sparse are None under align="softmax"
    grid        (gh,gw), P = gh*gw
    objects     (L,) the object that a word names, -1 for none: a row of masks (R,H,W) bool, None without any
    predicted, truth    (H,W) class of every pixel, -1 background; None where the data set has no masks
    classes     the names that these numbers stand for
    pieces      how many tokens each word is
    """

    image: np.ndarray
    caption: str
    words: tuple[str, ...]
    similarity: np.ndarray
    minmax: np.ndarray | None
    sparse: np.ndarray | None
    weights: np.ndarray
    grid: tuple[int, int]
    objects: np.ndarray
    key: str = ""
    predicted: np.ndarray | None = None
    truth: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    pieces: tuple[int, ...] = ()
    masks: np.ndarray | None = None


def explain_caption(
    params: dict, config: SPARCConfig, tokenizer, image: np.ndarray, caption: str, objective: ObjectiveConfig | None = None
) -> Explained:
    """One picture (H,W,3) uint8 of a size that the patch divides, and any caption. ValueError: a caption without a word."""
    from sparc_ref.data import Example

    return explain_example(params, config, tokenizer, Example(image, (caption,)), objective=objective)


def explain_examples(
    params: dict, config: SPARCConfig, dataset, tokenizer, indices, *, prompt: str = "name", upsample: str = "nearest",
    objective: ObjectiveConfig | None = None,
) -> tuple[Explained, ...]:
    """The first caption of each of these examples, with masks where the data set has regions and classes.

    prompt: "name" or "caption", the protocol for class embeddings (see measure.py); "caption" reads these examples only.
    objective: what the model was trained with; its maps are then of the patches that it compares, as in measure.evaluate.
    """
    embeddings = class_embeddings(params, config, dataset, tokenizer, list(indices), (prompt,))
    return tuple(
        explain_example(params, config, tokenizer, dataset[i], dataset.classes, embeddings.get(prompt), upsample, objective)
        for i in indices
    )


def explain_example(params, config, tokenizer, example, classes=(), class_emb=None, upsample="nearest",
                    objective=None) -> Explained:
    """One example; class_emb (K,D) adds the predicted mask."""
    caption = example.captions[0]
    tokens, mask = tokenizer.batch([caption], config.max_tokens)
    offsets = tokenizer.encode(caption, config.max_tokens).offsets
    kept = [l for l, (a, b) in enumerate(offsets) if caption[a:b].strip()]
    if not kept:
        raise ValueError(f"caption: expected at least one word, got {caption!r}")
    image = images_of(params, config, [example])
    patches = as_compared(params, config, image["v"], objective)
    trace = align(params, config, texts_of(params, config, tokens, mask)["t"], patches, mask)
    words = words_of(caption, [offsets[l] for l in kept])
    count = np.array([len(word) for word in words])
    first = np.cumsum(count) - count                              # (L,) where each word begins
    stages: dict[str, Any] = {k: np.add.reduceat(trace[k][0, kept], first) / count[:, None] if k in trace else None
                              for k in ("similarity", "minmax", "sparse", "weights")}
    grid = grid_of(config, [example])
    labels: dict[str, Any] = {}
    if example.regions and classes:
        labels = {"truth": truth_of(example, classes), "classes": tuple(classes)}
        if class_emb is not None:
            labels["predicted"] = segmented(image["segment"], class_emb, grid, example.image.shape[:2], upsample)[0]
    objects = regions_of(config, tokenizer, [example], [caption], np.zeros(1, int), mask)[0, kept]
    return Explained(
        image=example.image, caption=caption, words=tuple(caption[word[0][0]:word[-1][1]].strip() for word in words), grid=grid,
        objects=np.maximum.reduceat(objects, first), key=example.key, pieces=tuple(map(len, words)),
        masks=np.stack([r.mask for r in example.regions]) if example.regions else None,
        **stages, **labels,
    )


def words_of(caption: str, offsets: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Pieces put together to words: runs of letters, digits and marks, with hyphens and apostrophes inside.

    offsets: the characters (start, end) of each piece, in order. Every piece belongs to exactly one word; in scripts without
    spaces between words a piece stays a word of its own.
    """
    kind = [unicodedata.category(c)[0] for c in caption]
    inside = [k in "LMN" or c == "_" for k, c in zip(kind, caption)]
    inside = [now or (c in "-'’" and before and after)
              for now, c, before, after in zip(inside, caption, [False, *inside], [*inside[1:], False])]

    def joined(a, b):                                             # does a piece that ends at a go on at b?
        return a == b and inside[a - 1] and inside[a] and (kind[a] == "M" or not UNSPACED.search(caption[a - 1:a + 1]))

    words: list[list[tuple[int, int]]] = []
    for start, end in offsets:
        if words and joined(words[-1][-1][1], start):
            words[-1].append((start, end))
        else:
            words.append([(start, end)])
    return words
