"""A trained model as the tasks see it: pictures and texts in, NumPy embeddings out, a batch at a time."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from sparc_ref.model import SPARCConfig
from sparc_ref.objectives.chosen import ObjectiveConfig
from sparc_ref.run.checkpoint import INDEX
from sparc_ref.run.files import read_bytes
from sparc_ref.run.measure import pixels_of, texts_of
from sparc_ref.run.rundir import load_run, objective_of


@dataclass(frozen=True)
class Embedder:
    """Towers and heads of one checkpoint. Arrays it returns are NumPy's, whatever device the parameters are on."""

    params: dict
    config: SPARCConfig
    tokenizer: Any
    objective: ObjectiveConfig
    name: str                       # the checkpoint's path
    batch: int = 64                 # pictures or texts at a time
    shards: int = 4                 # parts of a batch side by side
    identity: str = ""              # a hash of the checkpoint: weights, tokenizer, configuration
    trained_on: tuple[str, ...] = ()  # the data that the run says it was trained on

    @classmethod
    def open(cls, checkpoint: str | Path, *, batch: int = 64, shards: int = 4) -> "Embedder":
        """A checkpoint or a run directory.   ValueError for anything that is wrong with it"""
        params, config, tokenizer, found = load_run(checkpoint)
        sources = found.record["config"].get("sources")
        data = sources.get("data") if isinstance(sources, dict) else None
        return cls(params, config, tokenizer, objective_of(found.record["config"], found.path), str(found.path), batch, shards,
                   identity=identity_of(found.path), trained_on=tuple(map(str, data or ())))

    def images(self, pictures: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """(H,W,3) uint8 of one size, multiples of the patch    -> "v" (N,P,D), "v_bar" (N,D), "segment" (N,P,D)

        Sizes other than the model's own resample its positions. "segment": every patch through h_v and g_v.
        """
        return pixels_of(self.params, self.config, list(pictures), self.shards)

    def texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """-> "t" (N,L,D), "t_bar" (N,D), "mask" (N,L) bool; cut at the model's max_tokens"""
        tokens, mask = self.tokenizer.batch(list(texts), self.config.max_tokens)
        return texts_of(self.params, self.config, tokens, mask, self.shards) | {"mask": mask}

    def pooled_texts(self, texts: Sequence[str]) -> np.ndarray:
        """t_bar of any number of texts, in batches.       -> (N,D)"""
        parts = [self.texts(part)["t_bar"] for part in batches(texts, self.batch)]
        return np.concatenate(parts) if parts else np.zeros((0, self.config.embed_dim), np.float32)


def identity_of(checkpoint: Path) -> str:
    """A hash of what a checkpoint's index says, which holds the hash of every file."""
    return hashlib.sha256(read_bytes(checkpoint / INDEX)).hexdigest()


def batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items; the last may be shorter."""
    items = iter(items)
    while part := list(islice(items, size)):
        yield part
