"""Endless, repeatable batches of images and tokens, and the map from tokens to the objects that they name."""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .example import Region


@dataclass(frozen=True, eq=False)
class Batch:
    """images (B,3,H,W) float32 in [-1, 1]; tokens (B,L) int64; mask (B,L) bool, True = real token;
    index (B,) int64, which example; caption (B,) int64, which of its captions."""

    images: np.ndarray
    tokens: np.ndarray
    mask: np.ndarray
    index: np.ndarray
    caption: np.ndarray


MOST_REMEMBERED = 1 << 22                                         # examples; 4 bytes each in every checkpoint


class Batches:
    """An endless iterator of Batch.   Same arguments and same state, same batches, bit for bit.

    Each epoch is a fresh permutation of the data set; what does not fill a batch is left out, so no image is twice in one
    (a second copy would be a false negative of the global loss). One caption is drawn per image and epoch. Order and
    captions of an epoch are functions of (seed, epoch), so the state is two numbers, and a hash of the pixels of every example
    that was met: one that is decoded to others later, here or after restore(), is a ValueError.

    image_size  resize to this square where an example's size differs; None takes the images as they are
    memory_mb   images (uint8) and captions are kept up to this many MiB; the rest is asked of the data set again each epoch
    duplicates  how many pictures so far were equal, pixel by pixel, to another one of their batch
    """

    def __init__(self, dataset, tokenizer, batch_size: int, *, seed: int, max_tokens: int,
                 image_size: int | None = None, memory_mb: float = 1024):
        for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0), ("max_tokens", max_tokens, 1)):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        if len(dataset) < batch_size:
            raise ValueError(f"batch_size: expected at most {len(dataset)}, the examples of "
                             f"{getattr(dataset, 'name', 'the data set')}, got {batch_size}; choose a smaller batch")
        self.dataset, self.tokenizer, self.batch_size = dataset, tokenizer, batch_size
        self.seed, self.max_tokens, self.image_size = seed, max_tokens, image_size
        self.epoch = self.position = 0
        self.free = int(memory_mb * 2**20)
        self.cache: dict[int, tuple[np.ndarray, tuple[str, ...]]] = {}
        self.digests = np.zeros(len(dataset), np.uint64)          # 0: not seen yet
        self.met = np.zeros(len(dataset), "<u4")                  # the same, shorter, of this run and of those before it
        self.duplicates = 0
        self._deal()

    @property
    def per_epoch(self) -> int:
        """Batches in one epoch."""
        return len(self.dataset) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self.position == self.per_epoch:
            self.epoch, self.position = self.epoch + 1, 0
            self._deal()
        at = slice(self.position * self.batch_size, (self.position + 1) * self.batch_size)
        index = self.order[at]
        images, texts, chosen = [], [], []
        for i, draw in zip(index.tolist(), self.draws[at].tolist()):
            image, captions = self._example(i)
            images.append(image)
            chosen.append(int(draw * len(captions)))
            texts.append(captions[chosen[-1]])
        tokens, mask = self.tokenizer.batch(texts, self.max_tokens)
        batch = Batch(to_images(images), tokens, mask, index.copy(), np.array(chosen, np.int64))
        _, times = np.unique(self.digests[index], return_counts=True)
        self.duplicates += int(times[times > 1].sum())
        self.position += 1                                        # last, so that an error leaves the state as it was
        return batch

    def state(self) -> dict[str, int | str]:
        """Where the iterator stands, JSON-able, with what restore() checks."""
        met = self.met if len(self.met) <= MOST_REMEMBERED else self.met[:0]
        pixels = base64.b64encode(met.tobytes()).decode()
        return {"epoch": self.epoch, "position": self.position, **self._identity(), "pixels": pixels}

    def restore(self, state: dict[str, int | str]) -> None:
        """Go to a state.   ValueError where it belongs to other data, another batch size or another seed."""
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise ValueError(f"{name}: expected {value} as in this run, got {state.get(name)} in the state")
        epoch, position = state.get("epoch"), state.get("position")
        if type(epoch) is not int or type(position) is not int or epoch < 0 or not 0 <= position <= self.per_epoch:
            raise ValueError(f"state: expected epoch >= 0 and position in 0..{self.per_epoch}, got {epoch!r} and {position!r}")
        try:
            pixels: Any = state.get("pixels") or ""
            met = np.frombuffer(base64.b64decode(pixels, validate=True), "<u4")
        except (ValueError, TypeError) as error:
            raise ValueError(f"state: expected a hash of the pixels of every example, got {error}") from error
        if len(met) not in (0, len(self.dataset)):
            raise ValueError(f"state: expected hashes of the pixels of {len(self.dataset)} examples, got {len(met)}")
        self.met = met.copy() if len(met) else np.zeros(len(self.dataset), "<u4")
        self.epoch, self.position = epoch, position
        self._deal()

    def _identity(self) -> dict[str, int]:
        return {"seed": self.seed, "examples": len(self.dataset), "batch_size": self.batch_size}

    def _deal(self) -> None:
        rng = np.random.default_rng(np.random.SeedSequence((self.seed, self.epoch)))
        self.order = rng.permutation(len(self.dataset))           # (N,)
        self.draws = rng.random(len(self.dataset))                # (N,) in [0, 1), picks the caption

    def _example(self, i: int) -> tuple[np.ndarray, tuple[str, ...]]:
        if i in self.cache:
            return self.cache[i]
        example = self.dataset[i]
        image = example.image
        if self.image_size is not None and image.shape[:2] != (self.image_size, self.image_size):
            from .images import resize

            image = resize(image, self.image_size)
        if not example.captions:
            raise ValueError(f"{example.key or i}: expected at least one caption, got none")
        self._remember(i, image, example.key)
        if image.nbytes <= self.free:
            self.cache[i] = image, example.captions
            self.free -= image.nbytes
        return image, example.captions

    def _remember(self, i: int, image: np.ndarray, key: str) -> None:
        digest = hashlib.blake2b(image.tobytes(), digest_size=8).digest()
        self.digests[i] = int.from_bytes(digest, "little")
        short = int.from_bytes(digest[:4], "little") or 1
        if self.met[i] not in (0, short):
            raise ValueError(f"{getattr(self.dataset, 'name', 'the data set')}: example {i} {key}: its pixels are not those "
                             "that this run met before: its file was replaced, or another version of Pillow decodes it "
                             "otherwise; put back what was there, or start anew")
        self.met[i] = short


def to_images(images: Sequence[np.ndarray]) -> np.ndarray:
    """(H,W,3) uint8 images of one size -> (B,3,H,W) float32, (x / 255 - 0.5) / 0.5."""
    shapes = sorted({image.shape for image in images})
    if len(shapes) != 1 or len(shapes[0]) != 3 or shapes[0][2] != 3:
        raise ValueError(f"images: expected (H,W,3) arrays of one size, got {shapes[:4]}; set image_size to resize them")
    if any(image.dtype != np.uint8 for image in images):
        raise ValueError(f"images: expected uint8, got {sorted({str(image.dtype) for image in images})}")
    out = np.empty((len(images), 3, *shapes[0][:2]), np.float32)
    for n, image in enumerate(images):
        out[n] = image.transpose(2, 0, 1)
    out *= np.float32(1 / 127.5)
    out -= np.float32(1)
    return out


def word_regions(offsets: Sequence[tuple[int, int]], regions: Sequence[Region], caption_index: int, length: int) -> np.ndarray:
    """Which region each token names.   offsets of one Encoding -> (length,) int64, -1 = names nothing (EOS, padding, relations)

    A token that touches the spans of several regions belongs to the one that it shares most characters with, the
    first of equals.
    """
    out = np.full(length, -1, np.int64)
    best = np.zeros(length, np.int64)
    for r, region in enumerate(regions):
        for k, start, end in region.spans:
            if k != caption_index:
                continue
            for n, (a, b) in enumerate(offsets[:length]):
                shared = min(b, end) - max(a, start)
                if shared > best[n]:
                    out[n], best[n] = r, shared
    return out


class Limited:
    """The first `count` examples of a data set (all where it has fewer)."""

    def __init__(self, dataset, count: int):
        if count < 1:
            raise ValueError(f"count: expected at least 1, got {count}")
        self.dataset, self.count = dataset, min(count, len(dataset))
        self.name, self.classes = dataset.name, dataset.classes

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        if not 0 <= index < self.count:
            raise IndexError(f"example {index} of {self.count}")
        return self.dataset[index]

    def describe(self) -> dict:
        return {**self.dataset.describe(), "limited_to": self.count}


class Joined:
    """Several data sets, one after the other."""

    def __init__(self, *datasets):
        if not datasets:
            raise ValueError("datasets: expected at least one, got none")
        self.datasets = datasets
        self.name = "+".join(d.name for d in datasets)
        self.classes = tuple(dict.fromkeys(c for d in datasets for c in d.classes))

    def __len__(self) -> int:
        return sum(map(len, self.datasets))

    def __getitem__(self, index: int):
        if index >= 0:
            for dataset in self.datasets:
                if index < len(dataset):
                    return dataset[index]
                index -= len(dataset)
        raise IndexError(f"example {index} of {len(self)}")

    def describe(self) -> dict:
        return {"name": self.name, "parts": [d.describe() for d in self.datasets]}
