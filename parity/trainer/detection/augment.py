"""From annotated pictures to an example that a detector is trained on.

flip, random crop, mosaics of 1, 4 or 9 pictures, each padded with grey below and to the right; boxes of one place that carry
several names become one box with all of them; queries are the names that are there, those known to be absent, and others.
Boxes are corners x0, y0, x1, y1; in pixels until the picture is placed, then in 0..1 of the square.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from parity.trainer.detection.data import Annotated, canonical
from sparc_ref.evaluate.detection import corners, iou, sized
from sparc_ref.tasks.prompts import templates_of

GREY = 128
MERGED = 0.9                                              # IoU from which boxes are one


@dataclass(frozen=True)
class Scene:
    """A picture with its boxes: image (H,W,3) uint8, box (M,4) corners, label (M,) int."""

    image: np.ndarray
    box: np.ndarray
    label: np.ndarray


@dataclass(frozen=True)
class Item:
    """What one picture is trained on: image (S,S,3) uint8, texts of the Q queries, labels (M,Q), box (M,4) cx, cy, w, h."""

    image: np.ndarray
    texts: tuple[str, ...]
    labels: np.ndarray
    box: np.ndarray


@dataclass(frozen=True)
class Augmentation:
    """What is done to pictures; the published recipe."""

    flip: float = 0.5               # probability of a mirror image
    crop: float = 1.0               # probability of a random crop
    crop_aspect: tuple[float, float] = (0.75, 1.33)  # of a crop: width by height
    crop_area: tuple[float, float] = (0.33, 1.0)  # of a crop, as a share of the picture
    crop_keep: float = 0.6          # share of a box' area that a crop has to leave
    mosaics: tuple[float, ...] = (0.4, 0.3, 0.3)  # probability of 1 x 1, 2 x 2, 3 x 3 pictures in one
    negatives: int = 50             # names that are not there, at least, drawn by how frequent they are
    prompts: str = "clip80"         # a template is drawn for each name: of CLIP's 80, of clip7, or bare: the name alone

    def __post_init__(self):
        templates_of(self.prompts)
        for name in ("flip", "crop", "crop_keep"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a number in 0..1, got {getattr(self, name)}")
        if self.negatives < 0 or not self.mosaics or min(self.mosaics) < 0 or abs(sum(self.mosaics) - 1) > 1e-6:
            raise ValueError(f"mosaics, negatives: expected probabilities with sum 1 and a number of at least 0, got "
                             f"{self.mosaics} and {self.negatives}")


NONE = Augmentation(flip=0.0, crop=0.0, mosaics=(1.0,))


def make_item(
    read: Callable[[], tuple[np.ndarray, Annotated]], classes: Sequence[str], frequency: np.ndarray, size: int,
    options: Augmentation, rng: np.random.Generator, forbidden: frozenset[str] = frozenset(),
) -> Item:
    """One example.      read() gives the next picture; frequency (K,) of each class; forbidden: canonical names never shown"""
    k = 1 + int(rng.choice(len(options.mosaics), p=options.mosaics))
    tiles, absent = [], []
    for _ in range(k * k):
        image, annotated = read()
        own = ~annotated.crowd                            # a crowd is no object to be found once
        scale = image.shape[1] / annotated.size[0], image.shape[0] / annotated.size[1]
        scene = Scene(image, corners(annotated.box[own]) * [*scale, *scale], annotated.label[own])
        if rng.random() < options.crop:
            scene = crop(scene, options, rng)
        if rng.random() < options.flip:
            scene = flipped(scene)
        tiles.append(scene)
        absent.append(set(annotated.negative))
    image, box, label = mosaic(tiles, size)
    banned = np.array([canonical(name) in forbidden for name in classes], bool) if forbidden else np.zeros(len(classes), bool)
    own = ~banned[label]
    box, has = merged(box[own], label[own], len(classes))
    there = np.flatnonzero(has.any(0))
    known = set.intersection(*absent) - set(np.flatnonzero(banned).tolist()) - set(there.tolist())
    names = [*there.tolist(), *sorted(known)]
    names += others(names, frequency * ~banned, options.negatives - len(known), rng)
    order = rng.permutation(len(names))
    chosen = [names[i] for i in order]
    templates = templates_of(options.prompts)
    texts = tuple(templates[rng.integers(len(templates))].replace("{c}", said(classes[n])) for n in chosen)
    centre = np.concatenate([(box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]], 1)
    return Item(image, texts, has[:, chosen], centre)


def said(name: str) -> str:
    """A class' name as a query: lower case, no underscores."""
    return " ".join(name.lower().replace("_", " ").split())


def others(names: Sequence[int], frequency: np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
    """Classes that are not among `names`, drawn by their frequency.      -> at most `count`"""
    weight = frequency.astype(np.float64)
    weight[list(names)] = 0
    able = np.flatnonzero(weight)
    count = min(count, len(able))
    if count <= 0:
        return []
    return rng.choice(able, count, replace=False, p=weight[able] / weight.sum()).tolist()


def crop(scene: Scene, options: Augmentation, rng: np.random.Generator) -> Scene:
    """A random part; boxes of which less than options.crop_keep stays are dropped, the others cut."""
    height, width = scene.image.shape[:2]
    for _ in range(10):
        aspect, share = rng.uniform(*options.crop_aspect), rng.uniform(*options.crop_area)
        h = round(np.sqrt(share * width * height / aspect))
        w = round(h * aspect)
        if 1 <= w <= width and 1 <= h <= height:
            break
    else:
        return scene
    x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    box = np.clip(scene.box - [x, y, x, y], 0, [w, h, w, h])
    size, before = box[:, 2:] - box[:, :2], scene.box[:, 2:] - scene.box[:, :2]
    stays = (size.prod(1) >= options.crop_keep * before.prod(1)) & (size > 0).all(1)
    return Scene(scene.image[y:y + h, x:x + w], box[stays], scene.label[stays])


def flipped(scene: Scene) -> Scene:
    """Left and right exchanged."""
    width = scene.image.shape[1]
    box = np.stack([width - scene.box[:, 2], scene.box[:, 1], width - scene.box[:, 0], scene.box[:, 3]], 1)
    return Scene(scene.image[:, ::-1], box, scene.label)


def mosaic(tiles: Sequence[Scene], size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """k*k pictures in one square, row by row.      -> image (size,size,3), box (M,4) in 0..1, label (M,)"""
    k = round(len(tiles) ** 0.5)
    side = size // k
    out, boxes, labels = np.full((size, size, 3), GREY, np.uint8), [], []
    for n, tile in enumerate(tiles):
        y, x = side * (n // k), side * (n % k)
        out[y:y + side, x:x + side] = padded(tile.image, side)
        height, width = tile.image.shape[:2]
        box = np.clip(tile.box, 0, [width, height, width, height])
        box = box * (side / max(height, width)) + [x, y, x, y]
        boxes.append(box / size)
        labels.append(tile.label)
    return out, np.concatenate(boxes), np.concatenate(labels)


def padded(image: np.ndarray, size: int) -> np.ndarray:
    """The whole picture with its longer side `size`, grey below it or to its right.      (h,w,3) -> (size,size,3) uint8"""
    from PIL import Image

    height, width = image.shape[:2]
    longest = max(height, width)
    shape = max(1, round(width * size / longest)), max(1, round(height * size / longest))
    out = np.full((size, size, 3), GREY, np.uint8)
    resized = Image.fromarray(np.ascontiguousarray(image)).resize(shape, Image.Resampling.BICUBIC)
    out[:shape[1], :shape[0]] = np.asarray(resized)
    return out


def merged(box: np.ndarray, label: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of one place as one with all their labels; the first one's edges stay.  (M,4) corners, (M,) -> (m,4), (m,K) bool"""
    has = np.zeros((len(box), classes), bool)
    has[np.arange(len(box)), label] = True
    overlap = iou(sized(box), sized(box))
    kept: list[int] = []
    for m in range(len(box)):
        same = next((first for first in kept if overlap[first, m] >= MERGED), None)
        if same is None:
            kept.append(m)
        else:
            has[same] |= has[m]
    return box[kept], has[kept]


def forbidden_names(names: Sequence[str]) -> frozenset[str]:
    """Names that training must not show, in the form in which they are compared."""
    return frozenset(filter(None, map(canonical, names)))
