"""What every data set hands out: an image, its captions and, where known, the regions that the captions name.

A data set is anything with len(ds) and ds[i] -> Example, plus name, classes and describe(); there is no base class.  digest()
may say faster than a pass over all examples whether pictures and captions are still the same.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Region:
    """One object of an image.

    label   its class, e.g. "red circle"
    mask    (H,W) bool, True on the pixels where the object is visible
    spans   (caption index, start, end): the characters of that caption which name the object, articles and relations left out
    """

    label: str
    mask: np.ndarray
    spans: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True, eq=False)
class Example:
    """An image (H,W,3) uint8, its captions, its regions (empty where unknown) and a key that names it in messages."""

    image: np.ndarray
    captions: tuple[str, ...]
    regions: tuple[Region, ...] = ()
    key: str = ""
