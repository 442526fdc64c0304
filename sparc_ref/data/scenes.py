"""What drawn and pasted scenes share: random draws that never change, places that keep objects visible, captions with spans.

Draws come from the raw bits of PCG64, which NumPy promises never to change, and all arithmetic is either exact or rounded
by IEEE rules, so a scene is the same on every machine.
"""

import numpy as np

SPLITS = {"train": 0, "validation": 1, "test": 2, "unseen": 3, "heldout": 3}


class Draws:
    """Random integers for one scene, a function of the key alone.   key: integers >= 0"""

    def __init__(self, *key: int):
        self.bits = np.random.PCG64(np.random.SeedSequence(key))
        self.values = iter(self.bits.random_raw(96).tolist())

    def below(self, n: int) -> int:
        """An integer in [0, n)."""
        value = next(self.values, None)
        if value is None:
            self.values = iter(self.bits.random_raw(96).tolist())
            value = next(self.values)
        return (value >> 32) * n >> 32

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high], both ends included."""
        return low + self.below(high - low + 1)

    def shuffled(self, n: int) -> list[int]:
        """A permutation of range(n)."""
        order = list(range(n))
        for i in range(n - 1, 0, -1):
            j = self.below(i + 1)
            order[i], order[j] = order[j], order[i]
        return order

    def bytes(self, n: int) -> np.ndarray:
        """(n,) uint8, the same on machines of either byte order."""
        return self.bits.random_raw((n + 7) // 8).astype("<u8").view(np.uint8)[:n]


def place(draws: Draws, radii: list[float], size: int) -> list[tuple[float, float]]:
    """Centres (x, y) in pixels for discs of these radii, each <= size / 4 and at most four of them.

    Discs lie inside the image and two of them overlap by at most 15 % of the sum of their radii. Where random places do not
    fit, each disc gets a quadrant of its own.
    """
    centres: list[tuple[float, float]] = []
    for r in radii:
        for _ in range(16):
            steps = int(4 * (size - 2 * r)) + 1                   # quarters of a pixel
            x, y = r + draws.below(steps) / 4, r + draws.below(steps) / 4
            if all((x - a) ** 2 + (y - b) ** 2 >= (0.85 * (r + q)) ** 2 for (a, b), q in zip(centres, radii)):
                centres.append((x, y))
                break
        else:
            break
    if len(centres) == len(radii):
        return centres
    centres = []
    for r, quadrant in zip(radii, draws.shuffled(4)):
        steps = int(4 * (size / 2 - 2 * r)) + 1
        x, y = r + draws.below(steps) / 4, r + draws.below(steps) / 4
        centres.append((x + size / 2 * (quadrant % 2), y + size / 2 * (quadrant // 2)))
    return centres


def relation(a: tuple[float, float], b: tuple[float, float]) -> str:
    """Where the centre a lies as seen from b, along the axis on which they are further apart."""
    dx, dy = a[0] - b[0], a[1] - b[1]
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def position(centre: tuple[float, float], size: int) -> str:
    """Which ninth of the image the centre lies in."""
    column, row = (min(2, int(3 * c / size)) for c in centre)
    return (("at the top left", "at the top", "at the top right"),
            ("on the left", "in the middle", "on the right"),
            ("at the bottom left", "at the bottom", "at the bottom right"))[row][column]


POSITION_WORDS = ("left", "right", "of", "above", "below", "and", "at", "on", "in", "the", "top", "bottom", "middle")


def caption(order: list[int], phrases: list[str], centres: list[tuple[float, float]], size: int, style: str, article: str):
    """Say the objects in this order: "full" with relations, "short" with "and".   -> text, {object: (start, end) of its phrase}

    Four objects are two pairs: A left of B and C above D; a third or a single object gets its place in the image.
    """
    words: list[tuple[str, int]] = []                             # text and the object that it names, -1 for none
    for n, i in enumerate(order):
        if style == "short":
            words += [("and", -1)] * (n > 0) + [(phrases[i], i)]
            continue
        if n % 2:
            words.append((relation(centres[order[n - 1]], centres[i]), -1))
        elif n:
            words.append(("and", -1))
        words += [(article, -1)] * bool(article) + [(phrases[i], i)]
        if n == len(order) - 1 and n % 2 == 0:
            words.append((position(centres[i], size), -1))
    spans, at = {}, 0
    for text, i in words:
        if i >= 0:
            spans[i] = (at, at + len(text))
        at += len(text) + 1
    return " ".join(text for text, _ in words), spans


def background(draws: Draws, size: int, clutter: bool) -> np.ndarray:
    """A muted ground, (H,W,3) float32 in 0..255.   Clutter adds soft blotches, thin bars, specks and grain."""
    level = draws.between(60, 190)
    base = [level + draws.between(-12, 12) for _ in range(3)]
    if not clutter:
        return np.full((size, size, 3), base, np.float32)
    knots = np.array(base, np.float32) + (draws.bytes(48).reshape(4, 4, 3) // 5).astype(np.float32) - 25
    knots += knots.mean(-1, keepdims=True).round() - knots if draws.below(2) else 0
    w = _weights(size)                                            # integers, so these products are exact in float32
    rows = (w @ knots.reshape(4, 12)).reshape(size, 4, 3)
    ground = (w @ rows.transpose(1, 0, 2).reshape(4, -1)).reshape(size, size, 3).transpose(1, 0, 2) / np.float32(64 * 64)
    for _ in range(draws.between(2, 7)):
        long, thick = draws.between(size // 16, size // 2), max(1, size // 40)
        h, w_ = ((long, thick), (thick, long), (2 * thick, 2 * thick))[draws.below(3)]
        y, x = draws.below(size), draws.below(size)
        ground[y:y + h, x:x + w_] += np.float32(draws.between(-45, 45))
    grain = (draws.bytes(size * size) >> 4).astype(np.float32) - np.float32(7.5)
    ground += grain.reshape(size, size, 1)
    return np.clip(ground, 0, 255, out=ground)


_weight_tables: dict[int, np.ndarray] = {}


def _weights(size: int) -> np.ndarray:
    """Linear interpolation from 4 knots to `size` pixels as integers that sum to 64 in each row.   -> (size, 4) float32"""
    if size not in _weight_tables:
        at = (np.arange(size) * 192) // size                      # 0..191, 64 steps between knots
        table = np.zeros((size, 4), np.float32)
        table[np.arange(size), at // 64] = 64 - at % 64
        table[np.arange(size), at // 64 + 1] += at % 64
        _weight_tables[size] = table
    return _weight_tables[size]
