"""Whole words as tokens, for drawn scenes; and tokenizers of either kind read back from a folder."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .encoding import EOS, PAD, UNK, Counts, Encoding, finish, lowered, stack, write_json

WORD = re.compile(r"\w+(?:[-'’]\w+)*|[^\w\s]")


class WordTokenizer:
    """One id per word.   words: the vocabulary in the order of its ids, from 3 on; <pad> 0, <unk> 1, <eos> 2

    A word is a run of letters, digits and underscores, with hyphens and apostrophes inside ("red-circle"); any other
    character that is not white space is a token of its own.
    """

    kind = "word"
    pad_id = PAD
    unk_id = UNK
    eos_id = EOS

    def __init__(self, words: Iterable[str], eos: bool = True, lower: bool = True):
        self.eos, self.lower = eos, lower
        self.words = tuple(dict.fromkeys(lowered(w) if lower else w for w in words))
        self.index = {w: i for i, w in enumerate(self.words, 3)}
        self.vocab_size = 3 + len(self.words)
        self.counts = Counts()

    @classmethod
    def from_texts(cls, texts: Iterable[str], max_words: int = 10_000, eos: bool = True, lower: bool = True) -> "WordTokenizer":
        """The most frequent words of these texts, ties in alphabetical order."""
        seen: dict[str, int] = {}
        for text in texts:
            for match in WORD.finditer(lowered(text) if lower else text):
                seen[match[0]] = seen.get(match[0], 0) + 1
        return cls(sorted(seen, key=lambda w: (-seen[w], w))[:max_words], eos, lower)

    @property
    def truncated(self) -> int:
        """How many texts batch() has cut."""
        return self.counts.truncated

    @property
    def unknown(self) -> int:
        """How many unknown words batch() has met."""
        return self.counts.unknown

    def pieces(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids, offsets = [], []
        for match in WORD.finditer(lowered(text) if self.lower else text):
            ids.append(self.index.get(match[0], UNK))
            offsets.append(match.span())
        return ids, offsets

    def encode(self, text: str, max_tokens: int | None = None) -> Encoding:
        """ids and character ranges of one text, cut to max_tokens (EOS included) where given."""
        return finish(self, text, max_tokens)

    def batch(self, texts: Sequence[str], max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """tokens (B,L) int64 and mask (B,L) bool, L the longest of the batch and at most max_tokens."""
        return stack(self, texts, max_tokens)

    def decode(self, ids: Iterable[int]) -> str:
        """The words of these ids, joined by spaces; padding and EOS left out."""
        return " ".join("<unk>" if i == UNK else self.words[i - 3] for i in map(int, ids) if i not in (PAD, EOS))

    def describe(self) -> dict:
        """Kind, options and hash, JSON-able."""
        return {"kind": self.kind, "vocab_size": self.vocab_size, "eos": self.eos, "lower": self.lower, "hash": self.hash}

    @property
    def hash(self) -> str:
        """sha256 of everything that decides the ids."""
        content = json.dumps([self.kind, self.eos, self.lower, self.words], ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def save(self, folder: str | os.PathLike) -> None:
        """Write tokenizer.json into the folder."""
        write_json(folder, {"kind": self.kind, "eos": self.eos, "lower": self.lower, "words": self.words, "hash": self.hash})


def load_tokenizer(folder: str | os.PathLike):
    """The tokenizer that save() wrote into this folder.   ValueError where files are missing, damaged or of another hash."""
    path = Path(folder) / "tokenizer.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind = content["kind"]
        if kind == "word":
            tokenizer: Any = WordTokenizer(content["words"], content["eos"], content["lower"])
        elif kind == "unigram":
            from .unigram import UnigramTokenizer  # needs sentencepiece

            model = (Path(folder) / "tokenizer.model").read_bytes()
            tokenizer = UnigramTokenizer(model, content["eos"], content["lower"])
        else:
            raise ValueError(f"kind: expected word or unigram, got {kind!r}")
        stored = content["hash"]
    except (OSError, KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise ValueError(f"{path}: not a saved tokenizer ({type(error).__name__}: {error})") from error
    if tokenizer.hash != stored:
        raise ValueError(f"{path}: the content does not match its hash, the file was changed or damaged")
    return tokenizer
