"""Image-text retrieval: recall at K in both directions.

An image is a hit at K when ANY of its captions is among the K texts most similar to it (i2t); a caption is a hit when
its image is among the K images most similar to it (t2i). Similarity is the cosine.

Ties: equal scores are in no order, so a query counts as the probability of a hit when they are put in random order.
A constant embedding therefore scores exactly at chance, never 1.0. Scores closer than `tie` count as equal.
"""

from collections.abc import Sequence

import numpy as np

from sparc_ref.evaluate.check import finite, integers, sized, unit

KS = (1, 5, 10)


def retrieval(
    image_emb: np.ndarray, text_emb: np.ndarray, image_of_text: np.ndarray, ks: Sequence[int] = KS, *,
    tie: float = 1e-6, chunk: int = 512,
) -> dict[str, float]:
    """Recall at each K, both ways.                       image_emb (N,D), text_emb (M,D), image_of_text (M,) -> dict

    image_of_text[j] is the row of text j's image. Images without a text are distractors: candidates, never queries.
    tie: cosines that differ by at most this are equal; the default is the rounding of float32 embeddings 512 wide,
    and below 1e-12 it is 1e-12, the rounding of our own products.
    chunk: images scored at once; memory is about 3 * chunk * M * 8 bytes.
    Returns {"i2t_r1", ..., "t2i_r1", ...}: fractions of 0..1. A K beyond the gallery gives 1.
    ValueError: wrong shapes, NaN, an index outside 0..N-1, no text at all.
    """
    image_emb = finite("image_emb", image_emb, ("N", "D"))
    N, D = image_emb.shape
    text_emb = finite("text_emb", text_emb, ("M", D))
    M = text_emb.shape[0]
    image_of_text = owners(image_of_text, N, M)
    ks, tie = positive(ks), max(tie, 1e-12)

    x, y = unit(image_emb), unit(text_emb)                        # (N,D), (M,D)
    own = np.sum(x[image_of_text] * y, axis=1)                    # (M,)   each text with its own image
    blocks = ((a, s, s) for a in range(0, N, chunk) for s in (x[a:a + chunk] @ y.T,))
    return recalls(blocks, own, own, image_of_text, N, ks, tie)


def retrieval_of_scores(
    i2t: np.ndarray, t2i: np.ndarray, image_of_text: np.ndarray, ks: Sequence[int] = KS, *, tie: float = 1e-6, chunk: int = 512
) -> dict[str, float]:
    """retrieval() for scores that are no cosines of two vectors.      i2t, t2i (N,M), image_of_text (M,) -> dict

    i2t[i,j] is what image i, asking, thinks of text j; t2i[i,j] what text j, asking, thinks of image i: the same matrix where
    the score has no direction.  Scores that differ by at most `tie` are equal.  Both may be files (np.memmap): `chunk` images
    are looked at together, as in retrieval().
    """
    N, M = sized("i2t", i2t, ("N", "M")).shape
    sized("t2i", t2i, (N, M))
    image_of_text = owners(image_of_text, N, M)
    ks = positive(ks)
    for a in range(0, N, chunk):
        finite("i2t", i2t[a:a + chunk], ("N", M))
        finite("t2i", t2i[a:a + chunk], ("N", M))
    own_i, own_t = (np.asarray(s)[image_of_text, np.arange(M)] for s in (i2t, t2i))       # (M,)
    blocks = ((a, np.asarray(i2t[a:a + chunk]), np.asarray(t2i[a:a + chunk])) for a in range(0, N, chunk))
    return recalls(blocks, own_i, own_t, image_of_text, N, ks, tie)


def recalls(blocks, own_i, own_t, image_of_text, N, ks, tie):
    """Recall at each K, both ways, from scores that come some images at a time.

    blocks: (first image, its and the next images' scores when images ask, when texts ask), (n,M) each; own_i, own_t (M,): each
    text with its own image.
    """
    M = len(image_of_text)
    best = np.full(N, -np.inf)                                    # (N,)   each image with its best own text
    np.maximum.at(best, image_of_text, own_i)
    right = np.bincount(image_of_text[own_i >= best[image_of_text] - tie], minlength=N)   # (N,) own texts level with it

    above_i, level_i = np.zeros(N, np.int64), np.zeros(N, np.int64)      # texts above, and level with, an image's best
    above_t, level_t = np.zeros(M, np.int64), np.zeros(M, np.int64)      # images above, and level with, a text's own
    for a, i2t, t2i in blocks:
        part = slice(a, a + len(i2t))
        above_i[part] = np.count_nonzero(i2t > best[part, None] + tie, axis=1)
        level_i[part] = np.count_nonzero(i2t >= best[part, None] - tie, axis=1) - above_i[part]
        above = np.count_nonzero(t2i > own_t + tie, axis=0)
        above_t += above
        level_t += np.count_nonzero(t2i >= own_t - tie, axis=0) - above

    asked = np.isfinite(best)                                     # images that have a text
    wrong_i = np.maximum(level_i - right, 0)[asked]
    wrong_t = np.maximum(level_t - 1, 0)
    out = {f"i2t_r{k}": float(np.mean(hit(k, above_i[asked], right[asked], wrong_i))) for k in ks}
    return out | {f"t2i_r{k}": float(np.mean(hit(k, above_t, np.ones(M, np.int64), wrong_t))) for k in ks}


def retrieval_chance(image_of_text: np.ndarray, images: int, ks: Sequence[int] = KS) -> dict[str, float]:
    """What a constant embedding scores: recall at K of a random order.      image_of_text (M,) -> dict as retrieval"""
    M = len(integers("image_of_text", image_of_text, ("M",)))
    image_of_text = owners(image_of_text, images, M)
    ks = positive(ks)
    texts = np.bincount(image_of_text, minlength=images)
    texts = texts[texts > 0]
    out = {f"i2t_r{k}": float(np.mean(hit(k, np.zeros_like(texts), texts, M - texts))) for k in ks}
    return out | {f"t2i_r{k}": min(k / images, 1.0) for k in ks}


def hit(k, above, right, wrong):
    """P(a right candidate is among the first k).                                             each (Q,) int -> (Q,)

    `above` candidates come first, then right + wrong in random order: one minus the chance that the k - above places
    left all go to wrong ones, C(wrong, r) / C(right + wrong, r) for r places.
    """
    places = k - above
    miss = np.ones(above.shape)
    for i in range(k):
        drawn = np.maximum(wrong - i, 0) / np.maximum(right + wrong - i, 1)
        miss = np.where(i < places, miss * drawn, miss)
    return np.where(places > 0, 1.0 - miss, 0.0)


def owners(image_of_text, N, M):
    image_of_text = integers("image_of_text", image_of_text, (M,))
    if M == 0:
        raise ValueError("text_emb: expected at least one text, got 0")
    low, high = image_of_text.min(), image_of_text.max()
    if low < 0 or high >= N:
        raise ValueError(f"image_of_text: expected indices 0..{N - 1}, got {low}..{high}")
    return image_of_text


def positive(ks):
    if not ks or any(k < 1 or k != int(k) for k in ks):
        raise ValueError(f"ks: expected positive integers, got {tuple(ks)}")
    return tuple(int(k) for k in ks)
