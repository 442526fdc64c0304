"""Zero-shot classification: a picture gets the class whose text embedding is nearest by cosine.

A picture is a hit at K when its own class is among the K nearest. Ties: equal scores are in no order, so a picture counts as
the probability of a hit when they are put in random order: two classes of one name share their pictures evenly, and a constant
embedding scores exactly at chance. Scores closer than `tie` count as equal.
"""

from collections.abc import Sequence

import numpy as np

from sparc_ref.evaluate.check import booleans, chosen, finite, integers, unit
from sparc_ref.evaluate.retrieval import positive

KS = (1, 5)
COMBINE = ("embeddings", "similarities")


def combine(prompts: np.ndarray, how: str = "embeddings") -> np.ndarray:
    """One vector for each class, to be compared by its dot product with a unit vector.       prompts (...,T,D) -> (...,D)

    how  "embeddings": the mean of the prompts' unit embeddings, made unit again (CLIP)
         "similarities": what gives the mean of the prompts' cosines (FILIP): the same mean as it is. Classes whose prompts
         disagree have short ones, which is all that tells the two apart.
    ValueError: wrong shapes, NaN, no prompt.
    """
    chosen("how", how, COMBINE)
    prompts = np.asarray(prompts)
    prompts = finite("prompts", prompts, (*"ABCDEFGH"[:max(prompts.ndim - 2, 0)], "T", "D"))
    if prompts.shape[-2] == 0:
        raise ValueError("prompts: expected at least one for each class, got 0")
    mean = np.mean(unit(prompts), axis=-2)
    return unit(mean) if how == "embeddings" else mean


def hits(
    image_emb: np.ndarray, class_vec: np.ndarray, labels: np.ndarray, ks: Sequence[int] = KS, *,
    candidates: np.ndarray | None = None, tie: float = 1e-6,
) -> np.ndarray:
    """P(the own class is among the K nearest).       image_emb (N,D), class_vec (C,D) of combine, labels (N,) -> (N,len(ks))

    candidates (C,) bool: the classes that may be chosen, where these are not all (the 200 of ImageNet-A among 1000).
    ValueError: wrong shapes, NaN, a label outside 0..C-1 or of no candidate.
    """
    image_emb = finite("image_emb", image_emb, ("N", "D"))
    N, D = image_emb.shape
    class_vec = vectors(class_vec, D)
    labels, candidates = checked(labels, candidates, N, len(class_vec))
    ks = positive(ks)
    score = unit(image_emb) @ class_vec.T                                              # (N,C)
    own = score[np.arange(N), labels][:, None]
    score = np.where(candidates, score, -np.inf)
    tie = max(tie, 1e-12)                                                               # the rounding of our own products
    above = np.count_nonzero(score > own + tie, axis=1)
    level = np.count_nonzero(score >= own - tie, axis=1) - above                        # itself among them
    return np.clip((np.asarray(ks) - above[:, None]) / level[:, None], 0.0, 1.0)


def nearest(image_emb: np.ndarray, class_vec: np.ndarray, candidates: np.ndarray | None = None) -> np.ndarray:
    """The nearest class of each picture; a tie goes to the first.      image_emb (N,D), class_vec (C,D) -> (N,) int"""
    image_emb = finite("image_emb", image_emb, ("N", "D"))
    class_vec = vectors(class_vec, image_emb.shape[1])
    _, candidates = checked(np.zeros(0, np.int64), candidates, 0, len(class_vec))
    return np.argmax(np.where(candidates, unit(image_emb) @ class_vec.T, -np.inf), axis=1)


def accuracy(hit: np.ndarray, labels: np.ndarray, ks: Sequence[int] = KS) -> dict[str, float]:
    """What `hits` says of all pictures.      hit (N,len(ks)), labels (N,) -> {"top1": ..., "top5": ..., "mean_per_class": ...}

    mean_per_class: top-1 of each class' pictures, averaged over the classes that have any (balanced accuracy).
    """
    ks = positive(ks)
    hit = finite("hit", hit, ("N", len(ks)))
    labels = integers("labels", labels, (len(hit),))
    if not len(hit):
        raise ValueError("hit: expected at least one picture, got 0")
    out = {f"top{k}": float(x) for k, x in zip(ks, np.mean(hit, axis=0))}
    if 1 in ks:
        number = np.bincount(labels)
        of_class = np.bincount(labels, weights=hit[:, ks.index(1)])
        out["mean_per_class"] = float(np.mean(of_class[number > 0] / number[number > 0]))
    return out


def classification_chance(classes: int, ks: Sequence[int] = KS) -> dict[str, float]:
    """What a constant embedding scores among so many candidates.      -> dict as accuracy"""
    out = {f"top{k}": min(k / classes, 1.0) for k in positive(ks)}
    return out | ({"mean_per_class": 1 / classes} if 1 in ks else {})


def vectors(class_vec, D):
    """class_vec in float64.   ValueError for vectors longer than 1: `combine` has not been there, and lengths would decide"""
    class_vec = np.asarray(finite("class_vec", class_vec, ("C", D)), np.float64)
    with np.errstate(over="ignore"):
        longest = np.max(np.linalg.norm(class_vec, axis=1), initial=0)
    if not longest < 1 + 1e-5:
        raise ValueError(f"class_vec: expected vectors of length 1 at most, as combine gives them, got one of {longest:.4g}")
    return class_vec


def checked(labels, candidates, N, C):
    """labels and candidates of the right kind; all classes where no candidates are given."""
    labels = integers("labels", labels, (N,))
    candidates = np.ones(C, bool) if candidates is None else booleans("candidates", candidates, (C,))
    if not np.any(candidates):
        raise ValueError("candidates: expected at least one class, got none")
    if N and (labels.min() < 0 or labels.max() >= C):
        raise ValueError(f"labels: expected classes 0..{C - 1}, got {labels.min()}..{labels.max()}")
    if not np.all(candidates[labels]):
        raise ValueError(f"labels: expected candidates, got class {labels[~candidates[labels]][0]}, which is none")
    return labels, candidates
