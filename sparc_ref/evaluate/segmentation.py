"""Zero-shot segmentation (section 4.5, appendix D.7): a patch gets the class whose text embedding is nearest.

The patches given are h_v then g_v of f_v, the classes' text embeddings are the caller's choice (run/measure.py says which). The
candidate classes are all of the foreground classes, not only those in the picture, and there is no background class.
Labels: 0..K-1 a class, -1 background, `ignore` (255) never counted.
"""

import numpy as np

from sparc_ref.evaluate.check import chosen, finite, integers, unit

IGNORE = 255
STRIP = 4_000_000                                                 # cosines at a time


def segment(
    patches: np.ndarray, class_emb: np.ndarray, grid: tuple[int, int], size: tuple[int, int], *,
    upsample: str = "nearest",
) -> np.ndarray:
    """The nearest class of every pixel by cosine.       patches (N,P,D), class_emb (K,D) -> labels (N,H,W) in 0..K-1

    grid (gh,gw): P = gh*gw patches, row by row. size (H,W): the masks' resolution.
    upsample: "nearest": label the patches, then enlarge (D.7); "bilinear": enlarge the cosines, then label (PACL).
    A tie goes to the first class. ValueError: wrong shapes, NaN, no class.
    """
    gh, gw = grid
    H, W = size
    patches = finite("patches", patches, ("N", gh * gw, "D"))
    N, P, D = patches.shape
    class_emb = finite("class_emb", class_emb, ("K", D))
    K = class_emb.shape[0]
    chosen("upsample", upsample, ("nearest", "bilinear"))
    if K == 0 or min(H, W, gh, gw) < 1:
        raise ValueError(f"expected at least one class, patch and pixel, got K={K}, grid {grid}, size {size}")

    score = (unit(patches).reshape(N * P, D) @ unit(class_emb).T).reshape(N, gh, gw, K)
    if upsample == "nearest":
        label = np.argmax(score, axis=-1)                         # (N,gh,gw)
        return label[:, centre(H, gh)][:, :, centre(W, gw)]
    labels = np.empty((N, H, W), np.int64)
    rows, columns = between(H, gh), between(W, gw)                # (H,gh), (W,gw)
    for n in range(N):                                            # in strips: H*W*K cosines are many
        for a in range(0, H, strip := max(1, STRIP // (W * K))):
            tall = (rows[a:a + strip] @ score[n].reshape(gh, gw * K)).reshape(-1, gw, K)
            labels[n, a:a + strip] = np.argmax(columns @ tall, axis=-1)
    return labels


def centre(pixels, cells):
    """The cell that holds each pixel's centre.                   -> (pixels,) in 0..cells-1"""
    return ((2 * np.arange(pixels) + 1) * cells) // (2 * pixels)


def between(pixels, cells):
    """Linear interpolation from cell centres to pixel centres, constant beyond the outer ones.     -> (pixels,cells)"""
    at = np.clip((np.arange(pixels) + 0.5) * cells / pixels - 0.5, 0, cells - 1)
    left = np.minimum(np.floor(at).astype(np.int64), max(cells - 2, 0))
    weight = np.zeros((pixels, cells))
    weight[np.arange(pixels), left] = 1.0
    if cells > 1:
        weight[np.arange(pixels), left] = 1.0 - (at - left)
        weight[np.arange(pixels), left + 1] = at - left
    return weight


def miou(
    pred: np.ndarray, truth: np.ndarray, classes: int, *,
    average: str = "per_image", background: str = "in_union", ignore: int = IGNORE,
) -> float:
    """Mean intersection over union of the foreground classes.    pred, truth (N,H,W) int -> a fraction of 0..1

    classes: K; labels are 0..K-1, -1 is background (in pred: no class), `ignore` in truth leaves the pixel out.
    average: "per_image": mean over the classes present in a picture's truth, then over the pictures that have any
             (D.7); "dataset": intersections and unions summed over all pictures, then the mean over present classes.
    background: "in_union": a class predicted on background counts as a false positive; "ignore": those pixels are out.
    NaN when no picture has a class. ValueError: wrong shapes, not integers, labels outside the range.
    """
    overlap, union, area = intersections(pred, truth, classes, background=background, ignore=ignore)
    return mean_iou(overlap, union, area, average=average)


def intersections(
    pred: np.ndarray, truth: np.ndarray, classes: int, *, background: str = "in_union", ignore: int = IGNORE
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels per picture and class: intersection, union, area in the truth.    pred, truth (N,H,W) -> 3 times (N,K) int

    What miou counts, apart, so that a large set can be counted in parts and mean_iou taken at the end.
    """
    K = int(classes)
    chosen("background", background, ("in_union", "ignore"))
    pred = integers("pred", pred, ("N", "H", "W"))
    truth = integers("truth", truth, pred.shape)
    if K < 1 or 0 <= ignore < K:
        raise ValueError(f"expected K >= 1 and an ignore label that is no class, got K={K}, ignore={ignore}")
    counted = truth != ignore
    for name, x in (("pred", pred), ("truth", truth)):
        x = x[counted]
        if x.size and (x.min() < -1 or x.max() >= K):
            raise ValueError(f"{name}: expected labels -1..{K - 1} (or {ignore} in truth), got {x.min()}..{x.max()}")
    if background == "ignore":
        counted &= truth != -1

    N = pred.shape[0]
    overlap, area, claimed = (np.zeros((N, K), np.int64) for _ in range(3))
    for n in range(N):
        p, t = pred[n][counted[n]] + 1, truth[n][counted[n]] + 1          # 0: background
        area[n], claimed[n], overlap[n] = (np.bincount(x, minlength=K + 1)[1:] for x in (t, p, t[t == p]))
    return overlap, area + claimed - overlap, area


def mean_iou(overlap: np.ndarray, union: np.ndarray, area: np.ndarray, *, average: str = "per_image") -> float:
    """The mean of intersection / union where the truth has the class.           each (N,K) -> float, NaN if none has"""
    chosen("average", average, ("per_image", "dataset"))
    area = integers("area", area, ("N", "K"))
    overlap, union = integers("overlap", overlap, area.shape), integers("union", union, area.shape)
    if average == "dataset":
        overlap, union, area = (np.sum(x, axis=0, keepdims=True) for x in (overlap, union, area))
    present = area > 0
    iou = overlap / np.where(present, union, 1)
    pictures = np.any(present, axis=1)
    if not np.any(pictures):
        return float("nan")
    return float(np.mean(np.sum(iou * present, axis=1)[pictures] / np.sum(present, axis=1)[pictures]))


class Tally:
    """Counts of pictures that come one by one; mean() is mean_iou of all of them, without keeping them."""

    def __init__(self, classes: int):
        self.sums = [np.zeros((1, classes), np.int64) for _ in range(3)]
        self.total = self.pictures = 0.0

    def add(self, overlap: np.ndarray, union: np.ndarray, area: np.ndarray) -> None:
        """One picture's, each (1,K), as intersections() gives them."""
        value = mean_iou(overlap, union, area)
        if np.isfinite(value):
            self.total, self.pictures = self.total + value, self.pictures + 1
        self.sums = [s + x for s, x in zip(self.sums, (overlap, union, area))]

    def mean(self, average: str) -> float:
        """NaN where no picture has a class."""
        if average == "dataset":
            return mean_iou(*self.sums, average=average)
        return self.total / self.pictures if self.pictures else float("nan")


def cells(
    truth: np.ndarray, grid: tuple[int, int], classes: int, *, background: str = "in_union", ignore: int = IGNORE
) -> np.ndarray:
    """How many counted pixels of each class, background last, every patch holds.           truth (H,W) -> (P,K+1) int"""
    K, (gh, gw) = classes, grid
    H, W = truth.shape
    place = centre(H, gh)[:, None] * gw + centre(W, gw)           # (H,W) the patch of every pixel, as segment() enlarges
    counted = (truth != ignore) & (truth != -1 if background == "ignore" else True)
    label = np.where(truth == -1, K, truth)[counted]
    return np.bincount(place[counted] * (K + 1) + label, minlength=gh * gw * (K + 1)).reshape(gh * gw, K + 1)


def drawn(held: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """intersections() of patches labelled so, by what they hold.              held (P,K+1), label (P,) -> 3 times (1,K) int"""
    K = held.shape[1] - 1
    area = np.sum(held, axis=0)[None, :K]
    overlap = np.bincount(label, held[np.arange(len(label)), label], K).astype(np.int64)[None]
    claimed = np.bincount(label, np.sum(held, axis=1), K).astype(np.int64)[None]
    return overlap, area + claimed - overlap, area
