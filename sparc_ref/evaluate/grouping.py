"""Grouping quality: does the alignment weight of a word fall on the object that the word names?

One query per object that a caption names: the weights (eq. 4) of all tokens of its name, averaged.

    mass      the share of the weight inside the object's mask
    pointing  the most weighted patch lies on the object
    iou       the region of patches with at least half of the largest weight, against the object: intersection / union
    choice    of all objects in the picture, the named one has the most weight per pixel (asked where there are several)

Patches on an object's border count by the fraction that the mask covers, so uniform weights score exactly the object's
share of the picture in the first three: that is their chance level. lift = value / chance. But an untrained model is
above it, because objects stand out from their ground whatever the word: only choice, with chance 1 / objects, tells
whether the word matters.
"""

import numpy as np

from sparc_ref.evaluate.check import booleans, chosen, finite, integers


def grouping(
    weights: np.ndarray, word_region: np.ndarray, masks: np.ndarray, grid: tuple[int, int], *, on: str = "cover"
) -> dict[str, float]:
    """Means over all named objects.            weights (N,L,P), word_region (N,L) int, masks (N,R,H,W) bool -> dict

    word_region[n,l] is the object (row of masks[n]) that token l names, -1 if none (so also for padding).
    grid (gh,gw): P = gh*gw. on: what "the patch lies on the object" counts, "cover": the covered fraction of it;
    "touch": 1 if the mask touches it at all (its chance is then the share of patches touched).
    Returns mass, pointing, iou and, where a picture has several objects, choice, each with _chance and _lift;
    best: the mean of the most covered patch, the highest value that mass, and pointing by cover, can take;
    objects: how many were asked.
    Without any object the dict is {"objects": 0.0}.
    ValueError: wrong shapes, NaN, negative weights, an index that is no object.
    """
    return summary(queries(weights, word_region, masks, grid, on=on))


def summary(scores: dict[str, np.ndarray]) -> dict[str, float]:
    """queries' arrays (concatenated over batches, if need be) -> the dict that grouping returns."""
    objects = len(scores["mass"])
    out = {"objects": float(objects)}
    if objects == 0:
        return out
    for name in ("mass", "pointing", "iou", "choice"):
        asked = np.isfinite(scores[name])
        if not np.any(asked):
            continue
        value, chance = float(np.mean(scores[name][asked])), float(np.mean(scores[f"{name}_chance"][asked]))
        out |= {name: value, f"{name}_chance": chance, f"{name}_lift": value / chance}
    return out | {"best": float(np.mean(scores["best"]))}


def queries(
    weights: np.ndarray, word_region: np.ndarray, masks: np.ndarray, grid: tuple[int, int], *, on: str = "cover"
) -> dict[str, np.ndarray]:
    """One value per named object with a visible pixel, in order of picture and object.       -> dict of (Q,) arrays

    choice is NaN where the picture has one visible object.
    """
    gh, gw = grid
    weights = finite("weights", weights, ("N", "L", gh * gw))
    N, L, P = weights.shape
    word_region = integers("word_region", word_region, (N, L))
    masks = booleans("masks", masks, (N, "R", "H", "W"))
    R = masks.shape[1]
    chosen("on", on, ("cover", "touch"))
    if word_region.size and (word_region.min() < -1 or word_region.max() >= R):
        raise ValueError(f"word_region: expected -1..{R - 1}, got {word_region.min()}..{word_region.max()}")
    named = word_region >= 0
    if np.any(weights[named] < 0):
        raise ValueError("weights: expected none below 0, got negative ones (similarities?)")

    cover = patch_cover(masks, grid)                              # (N,R,P)
    out: dict[str, list] = {k: [] for k in ("image", "region", "mass", "pointing", "iou", "choice", "best",
                           "mass_chance", "pointing_chance", "iou_chance", "choice_chance")}
    for n in range(N):
        visible = np.flatnonzero(np.any(cover[n], axis=-1))
        per_pixel = cover[n] / np.maximum(np.sum(cover[n], axis=-1, keepdims=True), 1e-300)       # (R,P)
        for r in np.unique(word_region[n][named[n]]):
            inside = cover[n, r]                                  # (P,)
            if not np.any(inside):
                continue                                          # hidden by other objects: nothing to find
            a = np.mean(weights[n][word_region[n] == r], axis=0, dtype=np.float64)
            total = np.sum(a)
            a = a / total if total > 0 else np.full(P, 1 / P)     # flat rows under flat="zero" say nothing: uniform
            top = a == np.max(a)                                  # several: each is as likely to be the one
            target = inside if on == "cover" else (inside > 0).astype(np.float64)
            region = a >= np.max(a) / 2
            overlap, share = np.sum(inside[region]), np.mean(inside)
            on_each = per_pixel[visible] @ a
            first = visible[on_each >= np.max(on_each) * (1 - 1e-12)]
            choice = (r in first) / len(first) if len(visible) > 1 else np.nan
            row = (n, r, np.sum(a * inside), np.mean(target[top]),
                   overlap / (np.count_nonzero(region) + np.sum(inside) - overlap), choice, np.max(inside),
                   share, np.mean(target), share, 1 / len(visible))
            for values, value in zip(out.values(), row):
                values.append(value)
    return {k: np.asarray(v, np.int64 if k in ("image", "region") else np.float64) for k, v in out.items()}


def patch_cover(masks: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The fraction of each patch that a mask covers, exact for any size.         masks (...,H,W) bool -> (...,P)"""
    gh, gw = grid
    H, W = masks.shape[-2:]
    if min(gh, gw, H, W) < 1:
        raise ValueError(f"expected at least one patch and pixel, got grid {grid}, masks {masks.shape}")
    cover = shares(H, gh) @ masks.astype(np.float64) @ shares(W, gw).T
    return cover.reshape(*masks.shape[:-2], gh * gw)


def shares(pixels, cells):
    """How much of each cell, of length pixels / cells, each pixel fills; rows sum to 1.          -> (cells,pixels)"""
    # in whole numbers: a pixel is `cells` long, a cell `pixels`
    p, c = np.arange(pixels), np.arange(cells)[:, None]
    overlap = np.minimum((p + 1) * cells, (c + 1) * pixels) - np.maximum(p * cells, c * pixels)
    return np.maximum(overlap, 0) / pixels
