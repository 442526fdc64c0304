"""Boxes, and average precision of detections: COCO's, and LVIS's over a federated vocabulary (section 4.5).

A box is (x, y, w, h), the corner and the size, as the data sets' files have it, or (x0, y0, x1, y1), the corners.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sparc_ref.evaluate.check import booleans, finite, integers

THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())           # of IoU, from which on a detection is right
RECALLS = np.linspace(0, 1, 101)                                  # at which precision is read
SMALL, LARGE = 32**2, 96**2                                       # pixels: COCO's small, medium and large objects


@dataclass(frozen=True)
class Truth:
    """The annotated boxes of a data set, one a row.

    image (M,) int, label (M,) int in 0..K-1, box (M,4) x, y, w, h
    area        (M,) of the object, which decides whether it is small; files give the mask's. None: the box's
    crowd       (M,) bool: any number of detections may lie in it, none of them counts. None: no box is one
    negative    of a federated data set, (image, label) of the classes that were looked for and not found: detections of classes
                that an image has neither as a box nor here are left out. None: every class was looked for everywhere
    incomplete  of a federated data set, (image, label) of which not all objects have a box: extra detections do not count
    """

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    area: np.ndarray | None = None
    crowd: np.ndarray | None = None
    negative: frozenset[tuple[int, int]] | None = None
    incomplete: frozenset[tuple[int, int]] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Found:
    """Detections, one a row: image (N,) int, label (N,) int, box (N,4) x, y, w, h, score (N,)."""

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    score: np.ndarray


def iou(a: np.ndarray, b: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """Intersection over union of every pair.                     a (N,4), b (M,4) x, y, w, h -> (N,M)

    crowd (M,) bool: there the share of a's area that lies in b. Boxes that do not overlap have 0, without area too.
    """
    a, b = finite("a", a, ("N", 4)), finite("b", b, ("M", 4))
    left, right = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, :2] + a[:, None, 2:], b[:, :2] + b[:, 2:])
    width, height = np.moveaxis(np.maximum(right - left, 0), -1, 0)
    both, own = width * height, (a[:, 2] * a[:, 3])[:, None]
    union = own + b[:, 2] * b[:, 3] - both
    if crowd is not None:
        union = np.where(crowd, own, union)
    return np.where(both > 0, both / np.where(both > 0, union, 1), 0.0)


def giou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU less the empty share of the smallest box around both, for every pair.     a (N,4), b (M,4) x, y, w, h -> (N,M)"""
    a, b = finite("a", a, ("N", 4)), finite("b", b, ("M", 4))
    size = np.maximum(a[:, None, :2] + a[:, None, 2:], b[:, :2] + b[:, 2:]) - np.minimum(a[:, None, :2], b[None, :, :2])
    hull, overlap = size[..., 0] * size[..., 1], iou(a, b)
    union = ((a[:, 2] * a[:, 3])[:, None] + b[:, 2] * b[:, 3]) / (1 + overlap)    # both = overlap * union
    return overlap - (hull - union) / np.where(hull > 0, hull, 1)


def corners(box: np.ndarray) -> np.ndarray:
    """x, y, w, h -> x0, y0, x1, y1                               (...,4) -> (...,4)"""
    return np.concatenate([box[..., :2], box[..., :2] + box[..., 2:]], -1)


def sized(box: np.ndarray) -> np.ndarray:
    """x0, y0, x1, y1 -> x, y, w, h                               (...,4) -> (...,4)"""
    return np.concatenate([box[..., :2], box[..., 2:] - box[..., :2]], -1)


def average_precision(
    truth: Truth, found: Found, classes: int, *, most: int = 100, area: tuple[float, float] = (0, 1e10),
    thresholds: Sequence[float] = THRESHOLDS,
) -> np.ndarray:
    """Precision averaged over 101 recalls, for every class and IoU threshold.     -> (K,T), NaN for a class without truth

    The numbers of pycocotools' COCOeval and of lvis' LVISEval. In each image detections, the best score first, take the free
    box of their class that they overlap most, from the threshold on; what takes none is wrong. Precision at a recall is the
    greatest at that recall or beyond. averaged(...) is AP, averaged(...[:, 0]) is AP50.
    most: detections that count, the best: per image and class, or where truth is federated per image.
    area: what is smaller or larger, in pixels, neither counts as truth nor as a mistake.
    Ties of scores go by image, then in the order given (pycocotools' and lvis' rule).
    ValueError: wrong shapes, NaN, labels outside of 0..K-1, negative sizes.
    """
    (truth, size, crowd), found = checked(truth, classes), checked_found(found, classes)
    best = leading(found, most, truth.negative is not None)
    places = groups(truth.image, truth.label), groups(found.image[best], found.label[best])
    out = np.full((classes, len(thresholds)), np.nan)
    limits = np.minimum(thresholds, 1 - 1e-10)
    nothing = np.zeros(0, np.int64)
    by_class: dict[int, list[tuple[int, int]]] = {}
    for image, label in sorted(places[0].keys() | places[1].keys()):
        by_class.setdefault(label, []).append((image, label))
    for label, keys in by_class.items():
        scores, right, wrong, count = [], [], [], 0
        for key in keys:
            here, there = places[0].get(key, nothing), best[places[1].get(key, nothing)]
            if truth.negative is not None and not len(here) and key not in truth.negative:
                continue
            ignored = crowd[here] | (size[here] < area[0]) | (size[here] > area[1])
            took, counts = match(iou(found.box[there], truth.box[here], crowd[here]), ignored, crowd[here], limits)
            own = found.box[there, 2] * found.box[there, 3]
            out_of_it = (own < area[0]) | (own > area[1]) | (key in truth.incomplete)
            scores.append(found.score[there])
            right.append(took & counts)
            wrong.append(~took & ~out_of_it)
            count += int(np.sum(~ignored))
        if count:
            order = np.argsort(-np.concatenate(scores), kind="stable")
            out[label] = precision(np.concatenate(right, 1)[:, order], np.concatenate(wrong, 1)[:, order], count)
    return out


def averaged(precisions: np.ndarray) -> float:
    """AP: the mean over classes that have truth, and thresholds; NaN where no class has.      (K,T) or (K,)"""
    known = precisions[~np.isnan(precisions)]
    return float(known.mean()) if len(known) else float("nan")


def match(overlap: np.ndarray, ignored: np.ndarray, crowd: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which detections, best first, take a box, and whether that box counts.   overlap (N,M) -> took (T,N), counts (T,N) bool

    A box that counts goes before one that is ignored, then the greatest overlap, then the later box; only crowds are taken
    twice.
    """
    N, M = overlap.shape
    free = np.ones((len(limits), M), bool)
    took, counts = np.zeros((len(limits), N), bool), np.ones((len(limits), N), bool)
    rows = np.arange(len(limits))
    for n in range(N if M else 0):
        fits = free & (overlap[n] >= limits[:, None])             # (T,M)
        counting = fits & ~ignored
        first = np.where(counting.any(1, keepdims=True), counting, fits)
        m = M - 1 - np.argmax(np.where(first, overlap[n], -1.0)[:, ::-1], axis=1)
        took[:, n], counts[:, n] = fits[rows, m], ~ignored[m]
        free[rows, m] &= ~took[:, n] | crowd[m]
    return took, counts


def precision(right: np.ndarray, wrong: np.ndarray, count: int) -> np.ndarray:
    """The mean over RECALLS.      right, wrong (T,N) bool, best score first; count: boxes to find -> (T,)"""
    hits, misses = np.cumsum(right, 1), np.cumsum(wrong, 1)
    at = hits / (hits + misses + np.spacing(1))
    at = np.maximum.accumulate(at[:, ::-1], 1)[:, ::-1]           # the greatest from there on
    at = np.pad(at, ((0, 0), (0, 1)))                             # recalls that are not reached
    return np.stack([row[np.searchsorted(hit / count, RECALLS)].mean() for row, hit in zip(at, hits)])


def leading(found: Found, most: int, per_image: bool) -> np.ndarray:
    """Rows of the `most` best detections of each image (and class), best first.    -> (n,) int"""
    order = np.argsort(-found.score, kind="stable")
    kept = [rows[:most] for rows in groups(found.image[order], np.where(per_image, 0, found.label[order])).values()]
    return order[np.sort(np.concatenate(kept))] if kept else order


def groups(image: np.ndarray, label: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """(image, label) -> its rows, in order."""
    order = np.lexsort((label, image))
    if not len(order):
        return {}
    pairs = np.stack([image[order], label[order]], 1)
    starts = np.flatnonzero(np.any(pairs[1:] != pairs[:-1], axis=1)) + 1
    return {(int(image[rows[0]]), int(label[rows[0]])): rows for rows in np.split(order, starts)}


def checked(truth: Truth, classes: int) -> tuple[Truth, np.ndarray, np.ndarray]:
    """The truth, its areas and which of it are crowds."""
    image, label = integers("truth.image", truth.image, ("M",)), integers("truth.label", truth.label, ("M",))
    M = len(image)
    box = finite("truth.box", truth.box, (M, 4)).astype(np.float64)
    in_range("truth", label, box, classes, M)
    area = box[:, 2] * box[:, 3] if truth.area is None else finite("truth.area", truth.area, (M,))
    crowd = np.zeros(M, bool) if truth.crowd is None else booleans("truth.crowd", truth.crowd, (M,))
    return Truth(image, label, box, area, crowd, truth.negative, truth.incomplete), area, crowd


def checked_found(found: Found, classes: int) -> Found:
    image, label = integers("found.image", found.image, ("N",)), integers("found.label", found.label, ("N",))
    N = len(image)
    box, score = finite("found.box", found.box, (N, 4)).astype(np.float64), finite("found.score", found.score, (N,))
    in_range("found", label, box, classes, N)
    return Found(image, label, box, score)


def in_range(name: str, label: np.ndarray, box: np.ndarray, classes: int, count: int) -> None:
    if classes < 1 or len(label) != count or (count and (label.min() < 0 or label.max() >= classes)):
        raise ValueError(f"{name}.label: expected {count} in 0..{classes - 1}, got {len(label)} in "
                         f"{label.min(initial=0)}..{label.max(initial=0)}")
    if np.any(box[:, 2:] < 0):
        raise ValueError(f"{name}.box: expected x, y, w, h with sizes of at least 0, got {box[np.any(box[:, 2:] < 0, 1)][0]}")
