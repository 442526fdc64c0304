"""What figures show of single examples: the stages of the alignment, word by word, and predicted against true masks."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparc_ref.model import SPARCConfig
from sparc_ref.run.measure import align, class_embeddings, grid_of, images_of, regions_of, segmented, texts_of, truth_of


@dataclass(frozen=True, eq=False)
class Explained:
    """One picture and caption, seen through one model.

    image       (H,W,3) uint8
    words       L tokens of the caption as they stand in it; special tokens are left out
    similarity, minmax, sparse, weights     (L,P), eqs. 2-4; minmax and sparse are None under align="softmax"
    grid        (gh,gw), P = gh*gw
    objects     (L,) the object that a token names, -1 for none
    predicted, truth    (H,W) class of every pixel, -1 background; None where the data set has no masks
    classes     the names that these numbers stand for
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


def explain_caption(params: dict, config: SPARCConfig, tokenizer, image: np.ndarray, caption: str) -> Explained:
    """One picture (H,W,3) uint8 of a size that the patch divides, and any caption. ValueError: a caption without a word."""
    from sparc_ref.data import Example

    return explain_example(params, config, tokenizer, Example(image, (caption,)))


def explain_examples(
    params: dict, config: SPARCConfig, dataset, tokenizer, indices, *, prompt: str = "name", upsample: str = "nearest"
) -> tuple[Explained, ...]:
    """The first caption of each of these examples, with masks where the data set has regions and classes.

    prompt: "name" or "caption", the protocol for class embeddings (see measure.py); "caption" reads these examples only.
    """
    embeddings = class_embeddings(params, config, dataset, tokenizer, list(indices), (prompt,))
    return tuple(
        explain_example(params, config, tokenizer, dataset[i], dataset.classes, embeddings.get(prompt), upsample)
        for i in indices
    )


def explain_example(params, config, tokenizer, example, classes=(), class_emb=None, upsample="nearest") -> Explained:
    """One example; class_emb (K,D) adds the predicted mask."""
    caption = example.captions[0]
    tokens, mask = tokenizer.batch([caption], config.max_tokens)
    offsets = tokenizer.encode(caption, config.max_tokens).offsets
    kept = [l for l, (a, b) in enumerate(offsets) if caption[a:b].strip()]
    if not kept:
        raise ValueError(f"caption: expected at least one word, got {caption!r}")
    image = images_of(params, config, [example])
    trace = align(params, config, texts_of(params, config, tokens, mask)["t"], image["v"], mask)
    stages: dict[str, Any] = {k: trace[k][0, kept] if k in trace else None
                              for k in ("similarity", "minmax", "sparse", "weights")}
    grid = grid_of(config, [example])
    masks: dict[str, Any] = {}
    if example.regions and classes:
        masks = {"truth": truth_of(example, classes), "classes": tuple(classes)}
        if class_emb is not None:
            masks["predicted"] = segmented(image["segment"], class_emb, grid, example.image.shape[:2], upsample)[0]
    objects = regions_of(config, tokenizer, [example], [caption], np.zeros(1, int), mask)[0, kept]
    return Explained(
        image=example.image, caption=caption, words=tuple(caption[slice(*offsets[l])].strip() for l in kept), grid=grid,
        objects=objects, key=example.key,
        **stages, **masks,
    )
