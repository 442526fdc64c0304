"""Train a captioner:    python -m parity.trainer.captioning --checkpoint RUN --language DIR --data captions:... --out DIR"""

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parity.trainer.captioning.fit import Training, fit
from parity.trainer.captioning.language import Language, next_word_loss, open_language, sequences, weights_hash
from parity.trainer.captioning.model import KIND, Captioner, CaptionerConfig, Tower
from parity.trainer.optim import decays
from sparc_ref.data import Batches
from sparc_ref.run.rundir import fingerprint
from sparc_ref.run.sources import absolute, open_source
from sparc_ref.run.telling import reasons


@dataclass(frozen=True)
class Options:
    """Train a captioner between a frozen vision tower and a frozen language model."""

    checkpoint: Path                # the run or checkpoint whose vision tower is taken
    language: Path                  # the folder of a language model: ours, or a causal one of Hugging Face's
    data: tuple[str, ...]           # what to train on, as for sparc-ref train
    out: Path                       # the folder to write
    max_tokens: int = 32            # of a sequence, <BOS>, <image> and <EOC> counted; longer captions are cut
    space: float = 0.5              # chance of a space before a caption, for tokenizers that see one; Flamingo, 4.1.4
    model: CaptionerConfig = field(default_factory=CaptionerConfig)
    training: Training = field(default_factory=Training)
    resume: bool = False            # continue the run in --out


class Sequences:
    """What sparc_ref.data.Batches asks of a tokenizer: captions -> <BOS> <image> caption <EOC>, and a mask."""

    def __init__(self, language: Language, space: float, seed: int):
        self.language, self.space, self.seed, self.cut = language, space, seed, 0

    def batch(self, texts: Sequence[str], max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        words, room = self.language, max_tokens - 3
        draws = np.random.default_rng([self.seed, zlib.crc32("\n".join(texts).encode())]).random(len(texts))
        ids = [words.encode(" " * int(draw < self.space) + text) for text, draw in zip(texts, draws)]
        self.cut += sum(len(row) > room for row in ids)
        tokens, mask = sequences([[words.start, words.image, *row[:room], words.end] for row in ids])
        return tokens.numpy(), mask.numpy()


def run(given: Options, say: Callable[[str], Any] = print) -> Captioner:
    """The command.   ValueError: what the user can mend"""
    tower, language = Tower.open(given.checkpoint), open_language(given.language)
    if not 4 <= given.max_tokens <= language.longest:
        raise ValueError(f"max_tokens: expected 4 to the language model's {language.longest}, got {given.max_tokens}")
    if not 0 <= given.space <= 1:
        raise ValueError(f"space: expected a chance in [0, 1], got {given.space}")
    t = given.training
    sets = [open_source(spec, tower.config.image_size) for spec in given.data]
    for spec, dataset in zip(given.data, sets):
        if hasattr(dataset, "report"):
            say(f"{spec}: {dataset.report}")
    model = Captioner(given.model, tower, language, t.seed).train()
    texts = Sequences(language, given.space, t.seed)
    streams = [Batches(d, texts, t.batch, seed=t.seed + 1000 * i, max_tokens=given.max_tokens,
                       image_size=tower.config.image_size) for i, d in enumerate(sets)]
    record = {"kind": KIND, "model": asdict(given.model), "train": asdict(t), "max_tokens": given.max_tokens,
              "space": given.space, "tower": {"path": tower.path, "sha256": tower.sha256},
              "language": {"path": str(given.language.resolve()), "kind": language.kind, "sha256": weights_hash(language),
                           "tokenizer": language.words_hash},
              "data": [json.loads(json.dumps(fingerprint(d))) for d in sets],
              "sources": {"data": [absolute(spec) for spec in given.data]}}
    own = model.own()
    frozen = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in own.values())
    say(f"{sum(p.numel() for p in own.values()):,} parameters are trained, {frozen:,} frozen: the tower of {tower.path}, the "
        f"{language.kind} language model of {given.language}; everything goes to {given.out}/")
    parts: dict[str, Any] = {"model": given.model, "training": t}
    for title, values in parts.items():
        notes: dict[str, str] = reasons(type(values))  # type: ignore[arg-type]
        say("\n".join([f"{title}:", *(f"  {k:17} {v!s:10} {notes.get(k, '')}".rstrip() for k, v in asdict(values).items())]))

    def loss(batches: list) -> Tensor:
        return torch.stack([loss_of(model, batch) for batch in batches]).mean()

    fit(own, loss, streams, t, given.out, record, Untold(language), resume=given.resume, say=say,
        decayed=lambda name: decays(name) and not name.startswith("resampler."))
    if texts.cut:
        say(f"{texts.cut:,} captions were longer than max_tokens {given.max_tokens} and cut, every time that they came by")
    return model.eval()


def loss_of(model: Captioner, batch: Any) -> Tensor:
    """Of the text and <EOC>; not of <BOS>, <image> and padding."""
    tokens, mask = torch.from_numpy(batch.tokens), torch.from_numpy(batch.mask)
    learned = mask.clone()
    learned[:, :2] = False
    return next_word_loss(model(torch.from_numpy(batch.images)[:, None], tokens), tokens, learned)


@dataclass(frozen=True)
class Untold:
    """In the place of a checkpoint's tokenizer: the words are the language model's, in its own folder."""

    language: Language

    @property
    def hash(self) -> str:
        return self.language.words_hash

    def save(self, folder: Path) -> None:
        """Nothing is written."""
