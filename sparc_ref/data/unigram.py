"""Sentencepiece unigrams, trained on the captions at hand or loaded.  Needs the package sentencepiece (the extra "run")."""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from .encoding import EOS, PAD, UNK, Counts, Encoding, finish, lowered, stack, write_json

LONGEST = 10_000                                                  # characters of one caption that training looks at


class UnigramTokenizer:
    """A sentencepiece model.   model: the bytes of a .model file; save() and load_tokenizer() keep it as one

    Lower-casing is done here, before sentencepiece and character by character, so that offsets stay those of the original
    text. A model made elsewhere may lack a padding id: padding is 0 all the same, the mask tells it from a token.
    """

    kind = "unigram"
    pad_id = PAD

    def __init__(self, model: bytes, eos: bool = True, lower: bool = True):
        from sentencepiece import SentencePieceProcessor

        try:
            self.processor = SentencePieceProcessor(model_proto=model)
        except (RuntimeError, OSError, TypeError, ValueError) as error:
            raise ValueError(f"model: expected the bytes of a sentencepiece model, got {len(model)} bytes ({error})") from error
        self.model, self.eos, self.lower = model, eos, lower
        self.vocab_size = self.processor.vocab_size()
        self.unk_id, self.eos_id = self.processor.unk_id(), self.processor.eos_id()
        if eos and self.eos_id < 0:
            raise ValueError("eos: this sentencepiece model has no EOS token, expected eos=False")
        self.counts = Counts()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 32_000, eos: bool = True, lower: bool = True) -> "UnigramTokenizer":
        """Learn at most vocab_size pieces; a small corpus gives fewer.  Same texts in the same order, same model.

        Every character of the corpus gets a piece unless that would take an eighth of the vocabulary; then the rarest
        0.05 % of characters become <unk>. ValueError where there is no text, or vocab_size cannot hold the characters.
        """
        from sentencepiece import SentencePieceTrainer

        corpus = [prepared(text, lower)[:LONGEST] for text in texts]
        corpus = [text for text in corpus if text.strip()]
        if not corpus:
            raise ValueError("texts: expected at least one caption with a visible character, got none")
        coverage = 1.0 if len(set().union(*corpus)) <= vocab_size // 8 else 0.9995
        model = io.BytesIO()
        try:
            SentencePieceTrainer.train(
                sentence_iterator=iter(corpus), model_writer=model, model_type="unigram", vocab_size=vocab_size,
                hard_vocab_limit=False, character_coverage=coverage, pad_id=PAD, unk_id=UNK, bos_id=-1, eos_id=EOS,
                max_sentence_length=4 * LONGEST, num_threads=1, minloglevel=2)
        except RuntimeError as error:
            raise ValueError(f"vocab_size: expected enough pieces for the characters of {len(corpus)} captions, "
                             f"got {vocab_size} ({error})") from error
        return cls(model.getvalue(), eos, lower)

    @classmethod
    def load(cls, path: str | os.PathLike, eos: bool = True, lower: bool = True) -> "UnigramTokenizer":
        """A .model file made by any sentencepiece.   ValueError where it is missing or is not one."""
        try:
            return cls(Path(path).read_bytes(), eos, lower)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: not a usable sentencepiece model ({error})") from error

    @property
    def truncated(self) -> int:
        """How many texts batch() has cut."""
        return self.counts.truncated

    @property
    def unknown(self) -> int:
        """How many unknown tokens batch() has met."""
        return self.counts.unknown

    def pieces(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        clean = prepared(text, self.lower)
        ids, offsets = [], []
        for i, a, b in _encode(self.processor, clean):
            while a < b and clean[a].isspace():                   # a piece begins with the space before its word
                a += 1
            while a < b and clean[b - 1].isspace():
                b -= 1
            ids.append(i)
            offsets.append((a, b))
        return ids, offsets

    def encode(self, text: str, max_tokens: int | None = None) -> Encoding:
        """ids and character ranges of one text, cut to max_tokens (EOS included) where given."""
        return finish(self, text, max_tokens)

    def batch(self, texts: Sequence[str], max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """tokens (B,L) int64 and mask (B,L) bool, L the longest of the batch and at most max_tokens."""
        return stack(self, texts, max_tokens)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids, as normalised by the model; padding and EOS left out."""
        return self.processor.decode([i for i in map(int, ids) if i not in (PAD, self.eos_id)])

    def describe(self) -> dict:
        """Kind, options and hash, JSON-able."""
        return {"kind": self.kind, "vocab_size": self.vocab_size, "eos": self.eos, "lower": self.lower, "hash": self.hash}

    @property
    def hash(self) -> str:
        """sha256 of everything that decides the ids."""
        options = json.dumps([self.kind, self.eos, self.lower])
        return hashlib.sha256(options.encode() + self.model).hexdigest()

    def save(self, folder: str | os.PathLike) -> None:
        """Write tokenizer.model and tokenizer.json into the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / "tokenizer.model.part"
        temporary.write_bytes(self.model)
        os.replace(temporary, folder / "tokenizer.model")
        write_json(folder, {"kind": self.kind, "eos": self.eos, "lower": self.lower, "hash": self.hash})


def prepared(text: str, lower: bool) -> str:
    """What sentencepiece gets: lone surrogates and NUL, which UTF-8 or C++ strings do not carry, replaced; same length."""
    if not text.isascii() or "\0" in text:
        text = "".join("\ufffd" if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in text)
    return lowered(text) if lower else text


def _encode(processor, text: str) -> list[tuple[int, int, int]]:
    """(id, start, end) of each piece, in characters of the text."""
    try:
        out = processor.encode(text, return_type="offset_mapping")                # sentencepiece 0.2.2 and later
    except TypeError:
        return [(p.id, p.begin, p.end) for p in processor.encode(text, out_type="immutable_proto").pieces]
    return [(i, *span) for i, span in zip(out["ids"], out["offsets"])]
