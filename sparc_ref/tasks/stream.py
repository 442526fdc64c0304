"""Pictures of any layout as a stream: where each lies, and a batch at a time decoded; what cannot be read is counted."""

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sparc_ref.data.images import read_image
from sparc_ref.data.load_report import Unusable


class Source(NamedTuple):
    """A file, or so many bytes of an archive from `offset` on."""

    path: str
    offset: int = 0
    size: int = -1                                        # -1: the whole file

    def content(self) -> Path | bytes:
        """What read_image takes.   Unusable where an archive has become another one"""
        if self.size < 0:
            return Path(self.path)
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise Unusable("shard became shorter", self.path)
        return data


class Batch(NamedTuple):
    """at (n,): which of the sources; pictures: theirs, (size,size,3) uint8 each"""

    at: np.ndarray
    pictures: list[np.ndarray]


def read(sources: Sequence[Source], size: int, how: str, batch: int, counts: Counter[str], what: str = "pictures",
         ) -> Iterator[Batch]:
    """All that can be read, in order, `batch` at a time; the others are counted by cause.      how: "squash" or "crop" """
    from tqdm import tqdm

    def one(source: Source) -> np.ndarray | Unusable:
        try:
            return read_image(source.content(), size, how)[0]
        except Unusable as error:
            return error
        except OSError as error:
            return Unusable("picture cannot be read", str(error))

    index: list[int] = []
    pictures: list[np.ndarray] = []
    bar = tqdm(total=len(sources), desc=what, unit="picture", disable=None, delay=1)
    with bar, ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for start in range(0, len(sources), batch):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")           # Pillow's hints about bombs and odd metadata: checked there
                done = list(pool.map(one, sources[start:start + batch]))
            bar.update(len(done))
            for i, picture in enumerate(done, start):
                if isinstance(picture, Unusable):
                    counts[picture.reason] += 1
                else:
                    index.append(i)
                    pictures.append(picture)
            if len(pictures) >= batch or start + batch >= len(sources):
                for at in range(0, len(pictures), batch):
                    yield Batch(np.array(index[at:at + batch]), pictures[at:at + batch])
                index, pictures = [], []


def spread(count: int, limit: int | None) -> np.ndarray:
    """`limit` of so many indices, evenly spread, the first among them; all of them without a limit.      -> (n,) int"""
    return np.arange(count) if limit is None or limit >= count else np.arange(limit) * count // limit
