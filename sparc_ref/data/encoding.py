"""What both tokenizers share: ids and offsets, counts, padding.

Id 0 is padding. There is no BOS; EOS (on by default) is a real token: it is in the mask and counts towards the length (the
paper does not say). A text that is too long is cut, EOS stays last. A text without any token is EOS alone, or one <unk> where
EOS is off, so every row of a mask has a True."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PAD, UNK, EOS = 0, 1, 2


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
