"""Text to token ids and back to characters: whole words for drawn scenes, sentencepiece unigrams for anything else.

Both tokenizers follow the same rules. Id 0 is padding. There is no BOS; EOS (on by default) is a real token: it is in the
mask and counts towards the length (the paper does not say). A text that is too long is cut, EOS
stays last. A text without any token is EOS alone, or one <unk> where EOS is off, so every row of a mask has a True.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PAD, UNK, EOS = 0, 1, 2
WORD = re.compile(r"\w+(?:[-'’]\w+)*|[^\w\s]")


@dataclass(frozen=True)
class Encoding:
    """ids; offsets, for each id the characters (start, end) of the original text, white space left out, empty for EOS;
    dropped, how many tokens were cut because the text was too long."""

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    dropped: int = 0


class Counts:
    """What batch() has seen so far: texts, truncated texts, tokens dropped by that, unknown tokens, tokens kept."""

    def __init__(self):
        self.texts = self.truncated = self.dropped = self.unknown = self.tokens = 0

    def add(self, encoding: Encoding, unk_id: int):
        self.texts += 1
        self.truncated += encoding.dropped > 0
        self.dropped += encoding.dropped
        self.unknown += encoding.ids.count(unk_id)
        self.tokens += len(encoding.ids)

    def as_dict(self) -> dict[str, int]:
        return dict(vars(self))

    def __str__(self):
        texts, tokens = max(1, self.texts), max(1, self.tokens)
        return (f"{self.texts} texts, {self.tokens} tokens; {self.truncated} texts cut ({self.truncated / texts:.1%}), "
                f"{self.dropped} tokens dropped; {self.unknown} unknown ({self.unknown / tokens:.1%})")


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


def lowered(text: str) -> str:
    """Lower case, character by character: the length never changes, so offsets stay those of the original."""
    if text.isascii():
        return text.lower()
    return "".join(low if len(low := c.lower()) == 1 else c for c in text)


def finish(tokenizer, text: str, max_tokens: int | None) -> Encoding:
    """Cut, append EOS, and apply the rule for empty texts."""
    if not isinstance(text, str):
        raise ValueError(f"text: expected a string, got {type(text).__name__}")
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens: expected at least 1, got {max_tokens}")
    ids, offsets = tokenizer.pieces(text)
    end = (len(text), len(text))
    if not ids and not tokenizer.eos:
        ids, offsets = [tokenizer.unk_id], [end]
    room = len(ids) if max_tokens is None else min(len(ids), max_tokens - tokenizer.eos)
    dropped = len(ids) - room
    ids, offsets = ids[:room], offsets[:room]
    if tokenizer.eos:
        ids.append(tokenizer.eos_id)
        offsets.append(end)
    return Encoding(tuple(ids), tuple(offsets), dropped)


def stack(tokenizer, texts: Sequence[str], max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"texts: expected a list of at least one string, got {texts!r}")
    encodings = [finish(tokenizer, text, max_tokens) for text in texts]
    length = max(len(e.ids) for e in encodings)
    tokens = np.full((len(texts), length), PAD, np.int64)
    mask = np.zeros((len(texts), length), bool)
    for row, encoding in enumerate(encodings):
        tokens[row, :len(encoding.ids)] = encoding.ids
        mask[row, :len(encoding.ids)] = True
        tokenizer.counts.add(encoding, tokenizer.unk_id)
    return tokens, mask


def write_json(folder: str | os.PathLike, content: dict) -> None:
    """tokenizer.json, written beside itself first so that a crash never leaves half a file."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "tokenizer.json.part"
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=True), encoding="utf-8")
    os.replace(temporary, folder / "tokenizer.json")


def load_tokenizer(folder: str | os.PathLike):
    """The tokenizer that save() wrote into this folder.   ValueError where files are missing, damaged or of another hash."""
    path = Path(folder) / "tokenizer.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind = content["kind"]
        if kind == "word":
            tokenizer: Any = WordTokenizer(content["words"], content["eos"], content["lower"])
        elif kind == "unigram":
            from .unigram import UnigramTokenizer

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
