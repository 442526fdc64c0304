"""Drawn scenes: the embedded default data.  One to four objects on a cluttered ground, a caption, and exact masks.

Nothing is downloaded and only NumPy is used.  A scene is a function of (seed, split, index) and the options: it does not
depend on how many scenes there are, in which order they are asked for, or on the machine.
"""

import hashlib
from dataclasses import asdict, dataclass
from math import cos, radians, sin

import numpy as np

from .example import Example, Region
from .scenes import POSITION_WORDS, SPLITS, Draws, background, caption, place
from .shapes import SHAPES, TEXTURES

COLOURS = {"red": (214, 30, 34), "orange": (250, 130, 12), "yellow": (246, 220, 30), "green": (30, 140, 40),
           "cyan": (30, 200, 214), "blue": (34, 62, 214), "purple": (128, 36, 170), "pink": (250, 130, 190)}

TURNS = [(round(cos(radians(a)), 6), round(sin(radians(a)), 6)) for a in range(-15, 16, 3)]

# Held out: each colour lacks two shapes and each shape two colours, so every word of an unseen pair is known from others.
PAIRS = {(c, s): (i - j) % 8 in (0, 3) for i, c in enumerate(COLOURS) for j, s in enumerate(SHAPES)}


@dataclass(frozen=True)
class DrawnScenes:
    """A data set of `count` scenes: ds[i] -> Example with an image (size, size, 3) uint8 and one Region per object.

    split     "train", "validation", "test": the same 48 colour-shape pairs, other scenes; "unseen": the other 16 pairs
    size      pixels per side, at least 16; shapes are easy to tell apart from 48 on
    objects   the least and the greatest number of objects, within 1..4; a scene never shows one pair twice
    clutter   False gives a ground of one colour
    textures  False draws every object plain
    style     of captions: "full", "a small striped red circle left of a large blue square",
              or "short", "red circle and blue square"
    captions  per scene, in different orders
    fused     one word per object name, "red-circle": names of unseen pairs are then words that training never shows

    A pixel belongs to the topmost object that covers at least half of it; masks are disjoint. classes: the split's names.
    """

    split: str = "train"
    size: int = 64
    count: int = 10_000
    seed: int = 0
    objects: tuple[int, int] = (1, 4)
    clutter: bool = True
    textures: bool = True
    style: str = "full"
    captions: int = 1
    fused: bool = False

    def __post_init__(self):
        if self.split not in ("train", "validation", "test", "unseen"):
            raise ValueError(f"split: expected train, validation, test or unseen, got {self.split!r}")
        if self.style not in ("full", "short"):
            raise ValueError(f"style: expected full or short, got {self.style!r}")
        if not 1 <= self.objects[0] <= self.objects[1] <= 4:
            raise ValueError(f"objects: expected a range within 1..4, got {self.objects}")
        for name, least in (("size", 16), ("count", 1), ("captions", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")

    @property
    def name(self) -> str:
        return f"drawn-{self.split}"

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The (colour, shape) pairs of this split."""
        return [pair for pair, unseen in PAIRS.items() if unseen == (self.split == "unseen")]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(("-" if self.fused else " ").join(pair) for pair in self.pairs)

    def describe(self) -> dict:
        """The options, JSON-able."""
        return {"name": self.name, "kind": "drawn scenes", **asdict(self), "objects": list(self.objects),
                "classes": len(self.classes)}

    def digest(self) -> str:
        """sha256 of the options, of which every scene is a function."""
        return hashlib.sha256(repr(self).encode()).hexdigest()

    def vocabulary(self) -> list[str]:
        """Every word that a caption of any split can hold, in a fixed order."""
        names = ["-".join(pair) for pair in PAIRS] if self.fused else [*COLOURS, *SHAPES]
        return ["a", "small", "large", *list(TEXTURES)[1:], *names, *POSITION_WORDS]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        draws = Draws(self.seed, SPLITS[self.split], index)
        pairs, size = self.pairs, self.size
        n = draws.between(*self.objects)
        chosen = [pairs.pop(draws.below(len(pairs))) for _ in range(n)]
        large = [draws.below(2) for _ in range(n)]
        radii = [size * (draws.between(195, 230) if big else draws.between(112, 132)) / 1000 for big in large]
        texture = [list(TEXTURES)[max(0, draws.below(6) - 2) if self.textures else 0] for _ in range(n)]
        centres = place(draws, radii, size)

        image = background(draws, size, self.clutter)
        masks: list[np.ndarray] = []
        for (colour, shape), r, centre, pattern in zip(chosen, radii, centres, texture):
            tone = np.array([c + draws.between(-8, 5) for c in COLOURS[colour]], np.float32)
            mask = draw(image, SHAPES[shape], TEXTURES[pattern], tone, centre, r, TURNS[draws.below(len(TURNS))])
            for below in masks:
                below &= ~mask
            masks.append(mask)

        link = "-" if self.fused else " "
        names = [link.join(pair) for pair in chosen]
        phrases = names
        if self.style == "full":
            phrases = [" ".join([("small", "large")[big], *[pattern] * (pattern != "plain"), name])
                       for big, pattern, name in zip(large, texture, names)]
        texts: list[str] = []
        spans: list[list] = [[] for _ in range(n)]
        for k in range(self.captions):
            text, at = caption(draws.shuffled(n), phrases, centres, size, self.style, "a")
            texts.append(text)
            for i, (start, end) in at.items():
                spans[i].append((k, start, end))
        regions = tuple(Region(name, mask, tuple(span)) for name, mask, span in zip(names, masks, spans))
        return Example((image + np.float32(0.5)).astype(np.uint8), tuple(texts), regions, f"{self.name}-{self.seed}-{index}")


def draw(image, shape, texture, tone, centre, r, turn):
    """Paint one object onto image (H,W,3) float32, in place.   -> (H,W) bool, where it covers at least half of a pixel

    tone (3,) the colour; centre, r in pixels; turn (cos, sin) of the rotation.
    """
    size = image.shape[0]
    (cx, cy), (c, s) = centre, turn
    left, right = max(0, int(cx - r) - 1), min(size, int(cx + r) + 2)
    top, bottom = max(0, int(cy - r) - 1), min(size, int(cy + r) + 2)
    x = (np.arange(left, right, dtype=np.float32) + np.float32(0.5 - cx))[None, :]
    y = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - cy))[:, None]
    x, y = x * c + y * s, y * c - x * s
    cover = np.clip(0.5 - np.float32(r) * shape(x / np.float32(r), y / np.float32(r)), 0, 1)
    paint = tone
    if texture is not None:
        second = np.clip(0.5 - texture(x, y, np.float32(max(size / 14, 0.42 * r))), 0, 1)
        paint = tone - (0.5 * second)[..., None] * tone
    window = image[top:bottom, left:right]
    window += cover[..., None] * (paint - window)
    mask = np.zeros((size, size), bool)
    mask[top:bottom, left:right] = cover >= 0.5
    return mask
