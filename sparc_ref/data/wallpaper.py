"""Wallpaper mosaics: pictures cut into regions, each papered with one named picture, so that the caption names all there is.

Mosaics of materials can be told apart by colour and stripes. Here a region is white paper on which one picture is repeated:
to know its word, the model has to know the picture. The pictures are pictures.py's: a folder or a zip of PNG files.
"""

import hashlib
import os

import numpy as np

from .example import Example, Region
from .mosaic import cells
from .pictures import PictureScenes, scaled
from .scenes import SPLITS, Draws, background


class WallpaperScenes:
    """A data set of `count` wallpaper mosaics: ds[i] -> Example with an image (size, size, 3) uint8 and one Region per region.

    source, names   as of PictureScenes; only pictures that are not held out are used
    split     "train", "validation", "test": the same pictures, other mosaics
    kinds     how many pictures are used, chosen by the hash of their names
    one_word  only pictures whose name is one word of letters; else a name's words are joined by "-", one token each
    regions   the least and the greatest number of regions, within 1..8; a mosaic never shows one picture twice
    coverage  the share of every region that is papered, around its centre; the rest is ground without a name
    period    pixels from one copy to the next; a copy's longer side is the whole period

    The caption names every region once, in random order.  classes: the names.
    """

    def __init__(self, source: str | os.PathLike, names: str | os.PathLike | None = None, split: str = "train", size: int = 64,
                 count: int = 10_000, seed: int = 0, kinds: int = 40, one_word: bool = True, regions: tuple[int, int] = (2, 5),
                 coverage: float = 1.0, period: int = 16):
        if split not in ("train", "validation", "test"):
            raise ValueError(f"split: expected train, validation or test, got {split!r}")
        if len(regions) != 2 or not 1 <= regions[0] <= regions[1] <= 8:
            raise ValueError(f"regions: expected a range within 1..8, got {regions}")
        if not 0 < coverage <= 1:
            raise ValueError(f"coverage: expected a share in (0, 1], got {coverage}")
        for name, value, least in (("size", size, 16), ("count", count, 1), ("seed", seed, 0), ("period", period, 4),
                                   ("kinds", kinds, regions[1])):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        pasted = PictureScenes(source, names, objects=(1, 1), keep_opaque=True)
        known = [name for name in pasted.pictures if name.isalpha() or not one_word]
        known.sort(key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        if len(known) < kinds:
            raise ValueError(f"kinds: expected at most {len(known)}, the pictures with a name, got {kinds}\n{pasted.report}")
        self.source, self.split, self.size, self.count, self.seed = pasted.source, split, size, count, seed
        self.kinds, self.one_word, self.regions = kinds, one_word, tuple(regions)
        self.coverage, self.period, self.report = coverage, period, pasted.report
        self.name = f"wallpaper-{self.source.stem}-{split}"
        self.papers = {"-".join(name.split()): paper(scaled(pasted.pictures[name], period), period)
                       for name in sorted(known[:kinds])}         # name -> (period,period,3)
        self.classes = tuple(self.papers)

    def describe(self) -> dict:
        """The options, JSON-able."""
        return {"name": self.name, "kind": "wallpaper mosaics", "source": str(self.source), "split": self.split,
                "size": self.size, "count": self.count, "seed": self.seed, "kinds": self.kinds, "one_word": self.one_word,
                "regions": list(self.regions), "coverage": self.coverage, "period": self.period}

    def digest(self) -> str:
        """sha256 of every picture with its name; with describe() it decides every mosaic."""
        digest = hashlib.sha256()
        for name, pixels in self.papers.items():
            digest.update(name.encode() + pixels.tobytes())
        return digest.hexdigest()

    def vocabulary(self) -> list[str]:
        """Every word of the captions, in a fixed order."""
        return list(self.classes)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.count:
            raise IndexError(f"mosaic {index} of {self.count}")
        draws, size = Draws(self.seed, SPLITS[self.split], index, 79), self.size   # 79: draws of its own
        left = list(self.classes)
        names = [left.pop(draws.below(len(left))) for _ in range(draws.between(*self.regions))]
        owner = cells(draws, len(names), size, self.coverage)                      # (H,W), -1 on the ground
        image = np.zeros((size, size, 3), np.float32)
        if self.coverage < 1:
            image = background(Draws(self.seed, SPLITS[self.split], index, 80), size, clutter=True)
        masks = [owner == r for r in range(len(names))]
        y, x = np.mgrid[:size, :size]
        for name, mask in zip(names, masks):
            dy, dx = draws.below(self.period), draws.below(self.period)
            image[mask] = self.papers[name][(y[mask] + dy) % self.period, (x[mask] + dx) % self.period]
        order = draws.shuffled(len(names))
        caption = " ".join(names[r] for r in order)
        starts = {r: sum(len(names[q]) + 1 for q in order[:n]) for n, r in enumerate(order)}
        found = tuple(Region(name, mask, ((0, starts[r], starts[r] + len(name)),))
                      for r, (name, mask) in enumerate(zip(names, masks)) if mask.any())
        return Example((image + np.float32(0.5)).astype(np.uint8), (caption,), found, f"{self.name}-{self.seed}-{index}")


def paper(picture: np.ndarray, period: int) -> np.ndarray:
    """One copy in the middle of white paper.      picture (h,w,4) premultiplied, h, w <= period -> (period,period,3) uint8"""
    height, width = picture.shape[:2]
    top, left = (period - height) // 2, (period - width) // 2
    out = np.full((period, period, 3), 255, np.uint8)
    out[top:top + height, left:left + width] = picture[..., :3] + (255 - picture[..., 3:])
    return out
