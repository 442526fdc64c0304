"""Mosaics: pictures cut into regions, each of a material that one word names, so that the caption can name all there is.

Drawn scenes show things on a ground that no caption names. Here the share of the picture that has a name is an option
(`coverage`), from the whole down to spots on an unnamed ground; so is the number of words for one region, and of regions that
no caption names. Nothing is downloaded; a mosaic is a function of (seed, split, index) and the options.
"""

import hashlib
from dataclasses import asdict, dataclass

import numpy as np

from .drawn import COLOURS
from .example import Example, Region
from .scenes import SPLITS, Draws, background

SURFACES = ("plain", "barred", "striped", "checked", "dotted", "slanted")
PERIOD = 8                                                # pixels of a pattern, at 64 pixels a side

# Held out: each colour lacks one or two surfaces and each surface one or two colours, so that both words are known from others.
MATERIALS = {(c, s): (i + j) % 6 == 0 for i, c in enumerate(COLOURS) for j, s in enumerate(SURFACES)}


@dataclass(frozen=True)
class MosaicScenes:
    """A data set of `count` mosaics: ds[i] -> Example with an image (size, size, 3) uint8 and one Region per named region.

    split        "train", "validation", "test": the same 40 materials (colour and surface), other mosaics; "unseen": the other 8
    size         pixels per side, at least 16
    regions      the least and the greatest number of regions, within 1..8; a mosaic never shows one material twice
    coverage     the share of every region that is filled, around its centre; the rest is ground without a name
    distractors  regions beside those, which no caption names
    words        1: "red-striped", one word a region; 2: "red striped", two words that mean the same region
    link         what stands between two regions' names: "" or a word such as "and"
    grain        standard deviation of noise, in steps of 256

    Two data sets that differ in coverage alone have the same regions and captions, and the same noise.
    classes: the split's names.  Every region keeps at least a twelfth of the picture where places can be found for them.
    """

    split: str = "train"
    size: int = 64
    count: int = 10_000
    seed: int = 0
    regions: tuple[int, int] = (2, 5)
    coverage: float = 1.0
    distractors: int = 0
    words: int = 1
    link: str = ""
    grain: int = 6

    def __post_init__(self):
        if self.split not in ("train", "validation", "test", "unseen"):
            raise ValueError(f"split: expected train, validation, test or unseen, got {self.split!r}")
        if len(self.regions) != 2 or not 1 <= self.regions[0] <= self.regions[1] <= 8:
            raise ValueError(f"regions: expected a range within 1..8, got {self.regions}")
        if not 0 < self.coverage <= 1:
            raise ValueError(f"coverage: expected a share in (0, 1], got {self.coverage}")
        if self.words not in (1, 2):
            raise ValueError(f"words: expected 1 or 2, got {self.words}")
        if self.regions[1] + self.distractors > len(self.materials):
            raise ValueError(f"regions, distractors: expected at most {len(self.materials)} in all, the materials of "
                             f"{self.split}; got {self.regions[1]} + {self.distractors}")
        for name, least in (("size", 16), ("count", 1), ("seed", 0), ("distractors", 0), ("grain", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if any(not w.isalpha() for w in self.link.split()):
            raise ValueError(f"link: expected words or nothing, got {self.link!r}")

    @property
    def name(self) -> str:
        return f"mosaic-{self.split}"

    @property
    def materials(self) -> list[tuple[str, str]]:
        """The (colour, surface) pairs of this split."""
        return [pair for pair, unseen in MATERIALS.items() if unseen == (self.split == "unseen")]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(("-", " ")[self.words - 1].join(pair) for pair in self.materials)

    def describe(self) -> dict:
        """The options, JSON-able."""
        return {"name": self.name, "kind": "mosaics", **asdict(self), "regions": list(self.regions),
                "classes": len(self.classes)}

    def digest(self) -> str:
        """sha256 of the options, of which every mosaic is a function."""
        return hashlib.sha256(repr(self).encode()).hexdigest()

    def vocabulary(self) -> list[str]:
        """Every word that a caption of any split can hold, in a fixed order."""
        names = ["-".join(pair) for pair in MATERIALS] if self.words == 1 else [*COLOURS, *SURFACES]
        return [*names, *dict.fromkeys(self.link.split())]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.count:
            raise IndexError(f"mosaic {index} of {self.count}")
        draws = Draws(self.seed, SPLITS[self.split], index, 77)   # 77: other draws than a drawn scene of the same key
        named = draws.between(*self.regions)
        materials = self.materials
        chosen = [materials.pop(draws.below(len(materials))) for _ in range(named + self.distractors)]
        owner = cells(draws, len(chosen), self.size, self.coverage)               # (H,W), -1 on the ground
        image = np.zeros((self.size, self.size, 3), np.float32)
        if self.coverage < 1:
            image = background(Draws(self.seed, SPLITS[self.split], index, 78), self.size, clutter=True)
        masks = []
        for r, (colour, surface) in enumerate(chosen):
            tone = np.array([c + draws.between(-10, 10) for c in COLOURS[colour]], np.float32)
            dark = pattern(surface, self.size, draws.below(PERIOD), draws.below(PERIOD))
            masks.append(owner == r)
            paint = np.where(dark[..., None], tone * np.float32(0.45), tone)
            image = np.where(masks[-1][..., None], paint, image)
        noise = draws.bytes(4 * self.size * self.size * 3).reshape(4, self.size, self.size, 3).astype(np.float32).sum(0)
        image = image + (noise - 510) * np.float32(self.grain / 148)              # four bytes: standard deviation 147.8

        order = draws.shuffled(named)
        words, spans, at = [], {}, 0
        for n, r in enumerate(order):
            link = f"{self.link} " if self.link and n else ""
            phrase = ("-", " ")[self.words - 1].join(chosen[r])
            at += len(link)
            spans[r] = (0, at, at + len(phrase))
            words.append(link + phrase)
            at += len(phrase) + 1
        found = tuple(
            Region(("-", " ")[self.words - 1].join(chosen[r]), masks[r], (spans[r],)) for r in range(named) if masks[r].any()
        )
        pixels = np.clip(image + np.float32(0.5), 0, 255).astype(np.uint8)
        return Example(pixels, (" ".join(words),), found, f"{self.name}-{self.seed}-{index}")


def cells(draws: Draws, count: int, size: int, coverage: float) -> np.ndarray:
    """Which of `count` regions each pixel belongs to, by the nearest of as many sites; -1 beyond a region's filled share.

    -> (H,W) int.  Sites are drawn until the smallest region has a twelfth of the picture, 60 times at most.
    """
    y, x = np.mgrid[:size, :size]
    best, largest = (y, y[None]), -1                      # the first draw replaces them
    for _ in range(60):
        sites = [(draws.below(size), draws.below(size)) for _ in range(count)]
        away = np.stack([(y - a) ** 2 + (x - b) ** 2 for a, b in sites])          # (count,H,W) whole numbers
        owner = np.argmin(away, axis=0)
        least = int(np.bincount(owner.ravel(), minlength=count).min())
        if least > largest:
            best, largest = (owner, away), least
        if 12 * least >= size * size:
            break
    owner, away = best
    if coverage == 1:
        return owner
    kept = np.full_like(owner, -1)
    for r in range(count):
        places = np.flatnonzero(owner == r)
        near = places[np.argsort(away[r].ravel()[places], kind="stable")]
        kept.ravel()[near[: max(1, round(coverage * len(places)))]] = r
    return kept


def pattern(surface: str, size: int, dx: int, dy: int) -> np.ndarray:
    """Where the second tone of a surface goes, shifted by (dx, dy) pixels.      -> (H,W) bool"""
    period = max(2, PERIOD * size // 64)
    y, x = np.mgrid[:size, :size]
    y, x = (y + dy) % period, (x + dx) % period
    half = period // 2
    return {
        "plain": np.zeros((size, size), bool), "barred": y < half, "striped": x < half, "checked": (y < half) ^ (x < half),
        "dotted": (2 * y + 1 - period) ** 2 + (2 * x + 1 - period) ** 2 < period**2 // 2, "slanted": (x + y) % period < half,
    }[surface]
